"""Keeping ONNX Runtime from making one rounding of two.

Where pairs of QuantizeLinear and DequantizeLinear follow one another on different grids, ONNX Runtime 1.31 drops the
two in the middle, and changes the scales around them; what was between two codes of the first grid then gets about the
nearest code of the second right away. It does so where nothing stands between the four, so with 8 bits, which need no
Clip. The session option ``session.disable_double_qdq_remover`` keeps it from that in one's own sessions; a barrier in
the file does in all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from srq_nni.speedup.barrier import barrier, replace_nodes
from srq_nni.speedup.onnx_graph import OnnxGraph


def keep_both_roundings(proto: Any) -> None:
    """Put a barrier between each pair and one of another grid behind it, in place.

    Args:
        proto: ``onnx.ModelProto`` with explicit Q/DQ pairs.
    """
    graph = OnnxGraph(proto.graph)
    nodes = []
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear" and _is_merged(node, graph):
            kept = f"{node.name}_kept"
            nodes.append(barrier(node.input[0], kept, kept))
            node.input[0] = kept
        nodes.append(node)
    replace_nodes(proto, nodes)


def _is_merged(quantizer: Any, graph: OnnxGraph) -> bool:
    """Whether a pair begins with ``quantizer`` and one of another grid ends in front of it."""
    before = graph.producer(quantizer.input[0])
    if before is None or before.op_type != "DequantizeLinear":
        return False
    first = graph.producer(before.input[0])
    are_pairs = first is not None and first.op_type == "QuantizeLinear"
    are_pairs &= any(reader.op_type == "DequantizeLinear" for reader in graph.readers(quantizer.output[0]))
    grid, other = graph.grid(quantizer), graph.grid(before)
    return are_pairs and not (_same(grid.scale, other.scale) and _same(grid.zero_point, other.zero_point))


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is not None and b is not None and np.array_equal(a, b)
