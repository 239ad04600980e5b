"""Keeping ONNX Runtime from making one rounding of two.

Where the output of a DequantizeLinear goes into a QuantizeLinear of another grid, ONNX Runtime 1.31 drops both, and
changes the scales around them; what was between two codes of the first grid then gets the nearest code of the second
right away, up to one code off. It does so where no Clip limits the codes, so with 8 bits. The session option
``session.disable_double_qdq_remover`` keeps it from that in one's own sessions; a barrier in the file does in all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from srq_nni.speedup.barrier import barrier, replace_nodes
from srq_nni.speedup.onnx_graph import Grid, OnnxGraph

# What hands codes on as they are, so that ONNX Runtime may move a quantizer through it.
SHAPES = ("DepthToSpace", "Flatten", "Reshape", "SpaceToDepth", "Squeeze", "Transpose", "Unsqueeze")
MOVES = frozenset((*SHAPES, "Clip", "Concat", "MaxPool", "Pad", "Relu", "Resize", "Slice", "Split"))


def keep_both_roundings(proto: Any) -> None:
    """Put a barrier in front of each QuantizeLinear that reads values of another grid, in place.

    Args:
        proto: ``onnx.ModelProto`` with explicit Q/DQ pairs.
    """
    graph = OnnxGraph(proto.graph)
    nodes = []
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear" and _reads_another_grid(node.input[0], graph.grid(node), graph):
            kept = f"{node.name}_kept"
            nodes.append(barrier(node.input[0], kept, kept))
            node.input[0] = kept
        nodes.append(node)
    replace_nodes(proto, nodes)


def _reads_another_grid(tensor: str, grid: Grid, graph: OnnxGraph) -> bool:
    node = graph.producer(tensor)
    if node is None:
        return False
    if node.op_type == "DequantizeLinear":
        codes, other = graph.producer(node.input[0]), graph.grid(node)
        if codes is None or codes.op_type != "QuantizeLinear":
            return False
        return not (_same(grid.scale, other.scale) and _same(grid.zero_point, other.zero_point))
    return node.op_type in MOVES and any(_reads_another_grid(name, grid, graph) for name in node.input)


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is not None and b is not None and np.array_equal(a, b)
