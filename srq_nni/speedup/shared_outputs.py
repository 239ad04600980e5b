"""Keeping OpenVINO from losing the scale of an integer layer whose output several nodes read.

OpenVINO 2026.4 moves the multiplication by the scales of an integer layer behind the nodes that read it, node by node,
and then fuses one of these multiplications into the layer itself, where all readers get it: out = conv + Q(conv) came
out up to 100 % wrong. A bias that is not 0 stands in the way, and so does any operation that is not linear.
"""

from __future__ import annotations

from typing import Any

from srq_nni.speedup.barrier import put_behind
from srq_nni.speedup.lint_rules import PRODUCTS
from srq_nni.speedup.onnx_graph import OnnxGraph

FACTORS = ("Mul", "Div")  # by a constant: OpenVINO merges them into the scales


def keep_scales(proto: Any) -> None:
    """Put a barrier behind each layer whose scale might get lost, in place.

    Args:
        proto: ``onnx.ModelProto`` with explicit Q/DQ pairs.
    """
    put_behind(proto, _may_lose_its_scale)


def _may_lose_its_scale(node: Any, graph: OnnxGraph) -> bool:
    return _is_integer_without_bias(node, graph) and _is_shared(node.output[0], graph)


def _is_integer_without_bias(node: Any, graph: OnnxGraph) -> bool:
    """Whether ``node`` multiplies stored integers and adds nothing, or zeros, which OpenVINO drops."""
    if node.op_type not in ("Conv", *PRODUCTS):
        return False
    weight = graph.producer(node.input[1])
    if weight is None or weight.op_type != "DequantizeLinear":
        return False
    if len(node.input) < 3 or not node.input[2]:
        return True
    bias = graph.producer(node.input[2])
    value = graph.constant(node.input[2] if bias is None else bias.input[0])
    return value is not None and not value.any()


def _is_shared(tensor: str, graph: OnnxGraph) -> bool:
    """Whether several nodes read ``tensor``, or what single ones make of it with a constant factor."""
    readers = graph.readers(tensor)
    if len(readers) + (tensor in graph.outputs) != 1 or not readers:
        return len(readers) > 0
    (reader,) = readers
    scaled = reader.op_type in FACTORS and any(graph.constant(name) is not None for name in reader.input)
    return scaled and _is_shared(reader.output[0], graph)
