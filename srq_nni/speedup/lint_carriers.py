"""Nodes that an engine runs on integers between a DequantizeLinear and the convolution that multiplies them."""

from __future__ import annotations

from typing import Any

import numpy as np

from srq_nni.speedup.lint_rules import Acceptance
from srq_nni.speedup.onnx_graph import Grid, OnnxGraph

MOVERS = ("AveragePool", "MaxPool", "Transpose")


def before_carriers(graph: OnnxGraph, tensor: str, accepted: Acceptance) -> tuple[str, frozenset[str]]:
    """Return the tensor that the nodes which carry integers to ``tensor`` read, and the kinds of these nodes.

    A Pad is passed by for every engine; whether it carries is for the caller to say. A Concat is passed by right before
    the convolution, if all that it joins is on one grid.
    """
    kinds: set[str] = set()
    node = graph.producer(tensor)
    while node is not None and node.op_type in ("Pad", *accepted.carriers):
        if node.op_type == "Concat" and (kinds or not _on_one_grid(graph, node)):
            break
        kinds.add(node.op_type)
        tensor = node.input[0]
        node = graph.producer(tensor)
    return tensor, frozenset(kinds)


def rectified(kinds: frozenset[str], grid: Grid) -> str:
    """Return why a ReLU among the carriers ends the integers, empty if it does not."""
    if "Relu" not in kinds:
        return ""
    if grid.zero_point is not None and grid.zero_point.any():
        return "a ReLU stands between its quantizer, which has a zero point, and it"
    moved = sorted(kinds & set(MOVERS))
    return f"a ReLU and a {moved[0]} of {grid.dtype} stand before it" if moved and grid.dtype != "uint8" else ""


def _on_one_grid(graph: OnnxGraph, concat: Any) -> bool:
    pairs = [graph.producer(name) for name in concat.input]
    if any(pair is None or pair.op_type != "DequantizeLinear" for pair in pairs):
        return False
    writers = [graph.producer(pair.input[0]) for pair in pairs]
    if any(writer is None or writer.op_type != "QuantizeLinear" for writer in writers):
        return False
    first, *others = (graph.grid(pair) for pair in pairs)
    return first.is_constant and all(_same(first, other) for other in others)


def _same(first: Grid, other: Grid) -> bool:
    if not other.is_constant or first.dtype != other.dtype:
        return False
    values = ((first.scale, other.scale), (first.zero_point, other.zero_point))
    return all(np.array_equal(np.asarray(one), np.asarray(two)) for one, two in values)
