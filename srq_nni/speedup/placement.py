"""What stands before and after a quantizer in a traced graph: engines decide by it what runs in integers."""

from __future__ import annotations

import copy
from typing import Any

from srq_nni.speedup.integers import IntegerNetwork
from srq_nni.speedup.lazy import import_or_explain
from srq_nni.speedup.lint_rules import CARRIERS
from srq_nni.speedup.markers import ACTIVATION, DOMAIN


class Placement:
    """Producers and consumers of the tensors of a graph that still has its markers, whatever becomes of it."""

    def __init__(self, graph: Any) -> None:
        nodes = [copy.deepcopy(node) for node in graph.node]  # as they are now; writing renames what they read
        self._producers = {output: node for node in nodes for output in node.output}
        self._consumers: dict[str, list[Any]] = {}
        for node in nodes:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)

    def is_nonnegative(self, tensor: str) -> bool:
        """Whether ``tensor`` comes from a ReLU, through quantizers at most."""
        node = self._producers.get(tensor)
        while node is not None and _is_quantizer(node):
            node = self._producers.get(node.input[0])
        return node is not None and node.op_type == "Relu"

    def inputs_of_weight(self, marker: Any) -> list[Any]:
        """Return the quantizers that the layers with the weight ``marker`` read, through ``CARRIERS`` at most."""
        found = []
        for layer in self._consumers.get(marker.output[0], []):
            before = self._producers.get(layer.input[0])
            while before is not None and before.op_type in CARRIERS:
                before = self._producers.get(before.input[0])
            if before is not None and _is_quantizer(before):
                found.append(before)
        return found

    def is_requantized(self, node: Any) -> bool:
        """Whether the output of a convolution goes to one quantizer with constant bounds and nowhere else.

        A ReLU may stand between the two.
        """
        readers = self._consumers.get(node.output[0], [])
        if len(readers) == 1 and readers[0].op_type == "Relu":
            readers = self._consumers.get(readers[0].output[0], [])
        return len(readers) == 1 and _is_quantizer(readers[0]) and len(readers[0].input) == 1


def hoist_above_concat(graph: Any, integers: IntegerNetwork) -> None:
    """Repeat a quantizer that alone reads a Concat on each input of that, in place.

    Rounding to a grid twice is rounding to it once, so no value changes; the convolution before it then ends in a
    quantizer.
    """
    onnx = import_or_explain("onnx", "onnx")
    nodes = []
    for node, reader in _followed_by_quantizer(graph, integers):
        if node.op_type == "Concat" and reader is not None:
            for position, tensor in enumerate(node.input):
                hoisted = f"{node.output[0]}_part_{position}"
                nodes.append(onnx.helper.make_node(ACTIVATION, [tensor], [hoisted], domain=DOMAIN, name=node.name))
                nodes[-1].attribute.extend(reader.attribute)
                node.input[position] = hoisted
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def take_over_pixel_shuffles(graph: Any, integers: IntegerNetwork) -> dict[str, Any]:
    """Let a quantizer that alone reads a DepthToSpace read its input instead, in place.

    Returns:
        The DepthToSpace nodes, which are no longer in the graph, by the name of the quantizer's output: codes are
        shuffled, four times fewer bytes, and the convolution before it ends in a quantizer.
    """
    taken, kept = {}, []
    for node, reader in _followed_by_quantizer(graph, integers):
        if node.op_type == "DepthToSpace" and reader is not None:
            reader.input[0] = node.input[0]
            taken[reader.output[0]] = node
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    return taken


def _followed_by_quantizer(graph: Any, integers: IntegerNetwork) -> list[tuple[Any, Any]]:
    """Return each node with the quantizer of constant bounds that alone reads it, or None."""
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    pairs = []
    for node in graph.node:
        following = readers.get(node.output[0], [])
        reader = following[0] if len(following) == 1 and _is_quantizer(following[0]) else None
        gated = reader is not None and integers.activations[reader.attribute[0].s.decode()].grid is None
        pairs.append((node, None if gated else reader))
    return pairs


def _is_quantizer(node: Any) -> bool:
    return bool(node.domain == DOMAIN and node.op_type == ACTIVATION)
