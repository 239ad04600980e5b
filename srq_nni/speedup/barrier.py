"""Max(lowest float32): an operation that changes no value, and through which engines do not fuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from srq_nni.speedup.lazy import import_or_explain
from srq_nni.speedup.onnx_graph import OnnxGraph

LOWEST = "lowest_float"


def barrier(source: str, target: str, name: str) -> Any:
    """Return a node that copies tensor ``source`` to ``target``."""
    onnx = import_or_explain("onnx", "onnx")
    return onnx.helper.make_node("Max", [source, LOWEST], [target], name=name)


def put_behind(proto: Any, wanted: Callable[[Any, OnnxGraph], bool]) -> None:
    """Put a barrier behind the first output of each node that is ``wanted``, in place; all readers get it."""
    graph = OnnxGraph(proto.graph)
    nodes = []
    for node in graph.nodes:
        nodes.append(node)
        if wanted(node, graph):
            output = node.output[0]
            node.output[0] = f"{output}_before_max"
            nodes.append(barrier(node.output[0], output, f"{node.name}_max"))
    replace_nodes(proto, nodes)


def replace_nodes(proto: Any, nodes: Sequence[Any]) -> None:
    """Give a graph these nodes, its own and barriers between them, in place."""
    if len(nodes) == len(proto.graph.node):
        return
    onnx = import_or_explain("onnx", "onnx")
    if not any(constant.name == LOWEST for constant in proto.graph.initializer):
        lowest = np.array(np.finfo(np.float32).min, np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(lowest, LOWEST))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
