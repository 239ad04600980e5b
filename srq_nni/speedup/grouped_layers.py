"""Keeping OpenVINO from a kernel that computes grouped convolutions wrongly on CPUs with AMX.

OpenVINO 2026.4 fuses what follows an integer convolution into its kernel. Where the input has a zero point and a
quantizer with one more operation per channel follows, its kernels for AMX cannot do so, and some groups, as of 6
channels, come to oneDNN's GEMM, whose sums are wrong there and right on AVX2. An operation right behind the convolution
that is not fused leaves them to AMX. This was seen on an emulated CPU alone (``tests/emulation``).
"""

from __future__ import annotations

from typing import Any

from srq_nni.speedup.barrier import put_behind
from srq_nni.speedup.onnx_graph import OnnxGraph


def keep_from_gemm(proto: Any) -> None:
    """Put a barrier behind each integer convolution with groups whose input has a zero point, in place.

    Args:
        proto: ``onnx.ModelProto`` with explicit Q/DQ pairs.
    """
    put_behind(proto, _may_come_to_gemm)


def _may_come_to_gemm(node: Any, graph: OnnxGraph) -> bool:
    return _has_groups(node, graph) and _has_zero_point(node.input[0], graph) and not _is_guarded(node, graph)


def _has_groups(node: Any, graph: OnnxGraph) -> bool:
    """Whether ``node`` is an integer convolution with groups; those of one channel in and out have their own kernel."""
    if node.op_type != "Conv":
        return False
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    weight = graph.producer(node.input[1])
    if groups == 1 or weight is None or weight.op_type != "DequantizeLinear":
        return False
    codes = graph.constant(weight.input[0])
    return codes is None or codes.shape[:2] != (groups, 1)


def _has_zero_point(tensor: str, graph: OnnxGraph) -> bool:
    """Whether ``tensor`` is dequantized with a zero point, and padded at most since."""
    node = graph.producer(tensor)
    while node is not None and node.op_type == "Pad":
        node = graph.producer(node.input[0])
    if node is None or node.op_type != "DequantizeLinear" or len(node.input) < 3:
        return False
    zero_point = graph.constant(node.input[2])
    return zero_point is None or bool(zero_point.any())


def _is_guarded(node: Any, graph: OnnxGraph) -> bool:
    return [reader.op_type for reader in graph.readers(node.output[0])] == ["Max"]
