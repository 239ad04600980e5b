"""DepthToSpace in the order of channels that engines copy fastest.

torch's PixelShuffle takes neighbouring channels for one block of pixels (mode CRD), so an engine that keeps channels
last gathers single numbers. In mode DCR it copies runs of channels. Both give the same image if the convolution before
it puts out its channels in another order, so its weights are reordered in the file. The float file is written so, too.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from srq_nni.speedup.lazy import import_or_explain
from srq_nni.speedup.onnx_graph import OnnxGraph

ELEMENTWISE = ("Add", "Clip", "DequantizeLinear", "Div", "Max", "Min", "Mul", "QuantizeLinear", "Relu", "Round")


def reorder_pixel_shuffles(proto: Any) -> int:
    """Turn every DepthToSpace of mode CRD that follows a convolution into mode DCR, in place; return how many.

    One whose convolution has other readers, or is followed by anything that knows channels, is left as it is.
    """
    graph = _Graph(proto)
    return sum(graph.reorder(node) for node in proto.graph.node if node.op_type == "DepthToSpace")


def reordered_for(graph: OnnxGraph, tensor: str) -> int:
    """Return the block size of the DepthToSpace for which ``tensor`` has its channels in another order, 1 for none."""
    readers = graph.readers(tensor)
    while len(readers) == 1 and readers[0].op_type in ELEMENTWISE:
        readers = graph.readers(readers[0].output[0])
    if len(readers) != 1 or readers[0].op_type != "DepthToSpace":
        return 1
    attributes = {attribute.name: attribute for attribute in readers[0].attribute}
    return attributes["blocksize"].i if attributes["mode"].s == b"DCR" else 1


def in_original_order(array: np.ndarray, block: int) -> np.ndarray:
    """Return ``array`` (N, C, H, W), reordered for ``block``, in the order of the network."""
    return array[:, np.argsort(_order(array.shape[1], block))]


def _order(channels: int, block: int) -> np.ndarray:
    """Return the channels of the network in the order of the file."""
    return np.arange(channels).reshape(-1, block * block).T.ravel()


class _Graph:
    def __init__(self, proto: Any) -> None:
        self.numpy_helper = import_or_explain("onnx", "onnx").numpy_helper
        self.constants = {constant.name: constant for constant in proto.graph.initializer}
        self.producers = {output: node for node in proto.graph.node for output in node.output}
        self.readers: dict[str, int] = {}
        for name in [name for node in proto.graph.node for name in node.input] + [o.name for o in proto.graph.output]:
            self.readers[name] = self.readers.get(name, 0) + 1

    def reorder(self, shuffle: Any) -> bool:
        attributes = {attribute.name: attribute for attribute in shuffle.attribute}
        if "mode" not in attributes or attributes["mode"].s != b"CRD":
            return False
        found = self._channel_constants(shuffle.input[0])
        if found is None:
            return False
        block = attributes["blocksize"].i
        for name, axis in found:
            array = self.numpy_helper.to_array(self.constants[name])
            order = _order(array.shape[axis], block)
            new = self.numpy_helper.from_array(np.ascontiguousarray(array.take(order, axis)), name)
            self.constants[name].CopyFrom(new)
        attributes["mode"].s = b"DCR"
        return True

    def _channel_constants(self, tensor: str) -> list[tuple[str, int]] | None:
        """Return (constant, axis) of all that has one entry a channel, from ``tensor`` up to its convolution."""
        found: list[tuple[str, int]] = []
        while True:
            node = self.producers.get(tensor)
            if node is None or self.readers[tensor] != 1:
                return None
            if node.op_type == "Conv":
                for name in node.input[1:]:
                    behind = self._constants_behind(name)
                    if behind is None:
                        return None
                    found += [(constant, 0) for constant in behind]
                return found
            if node.op_type not in ELEMENTWISE:
                return None
            for name in node.input[1:]:
                constant = self.constants.get(name)
                if constant is not None and np.prod(constant.dims) > 1:
                    if len(constant.dims) != 4 or self.readers[name] != 1:
                        return None
                    found.append((name, 1))
                elif constant is None and node.op_type not in ("Max", "Min", "Mul", "Div"):
                    return None  # another tensor with channels of its own
            tensor = node.input[0]

    def _constants_behind(self, name: str) -> set[str] | None:
        """Return the constant that a weight or bias is, or is (de)quantized from, with its scales of channels.

        None if something else reads one of them.
        """
        read: Counter[str] = Counter()
        while name not in self.constants:
            node = self.producers.get(name)
            quantizes = node is not None and node.op_type in ("DequantizeLinear", "QuantizeLinear")
            if node is None or not quantizes or self.readers[name] != 1:
                return None
            read.update(grid for grid in node.input[1:] if np.prod(self.constants[grid].dims) > 1)
            name = node.input[0]
        read[name] = 1
        return set(read) if all(self.readers[constant] == count for constant, count in read.items()) else None
