"""What CPUs without VNNI compute differently, read from an ONNX file.

VNNI and AMX multiply bytes and add the products in int32. Older x86 CPUs add two products of a uint8 and an int8 in
int16 first, which saturates: 255 x 127 x 2 is 64,770, and int16 ends at 32,767. If the uint8 stays within 127, no pair
of products leaves int16, whatever the weights: that is why codes of up to 7 bits are stored from 0. Wider ones are
exact if no two neighbouring weights are too large together, which those of trained layers mostly are not.

ONNX Runtime multiplies uint8 by int8 so, unless the session option ``session.x64quantprecision`` is 1, which changes
weights to uint8 on such CPUs, and on those with AVX-VNNI, which then do not use it. In OpenVINO oneDNN does the same
for uint8 inputs; for int8 inputs it adds 128 to them and multiplies the weights by 0.5, rounding half to even, so odd
weight codes lose their last bit. Its 1x1 kernel for AVX2 adds the 128, too, but leaves the weights, and saturates from
7 bits on. With AVX-VNNI, but neither AVX-512 nor AVX-VNNI-INT8, its GEMM kernels do without, which run some groups, as
of 6 channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from srq_nni.speedup.engine_rules import EngineRules
from srq_nni.speedup.lint import MARK_OF_WEIGHTS, lint_graph
from srq_nni.speedup.lint_rules import PRODUCTS
from srq_nni.speedup.machine import CPUINFO, cpu_flags
from srq_nni.speedup.onnx_graph import OnnxGraph

INT16 = np.iinfo(np.int16)


def has_vnni(cpuinfo: Path = CPUINFO) -> bool | None:
    """Return whether an x86 CPU multiplies bytes without intermediate rounding; None where this cannot be found out."""
    flags = cpu_flags(cpuinfo)
    if not flags & {"sse4_1", "avx2"}:
        return None
    return bool(flags & {"avx512_vnni", "avx_vnni", "amx_int8"})


def has_avx_vnni_alone(cpuinfo: Path = CPUINFO) -> bool:
    """Return whether VNNI is there in the form without AVX-512 only, which not all kernels of oneDNN use."""
    flags = cpu_flags(cpuinfo)
    return "avx_vnni" in flags and not flags & {"avx512_vnni", "amx_int8"}


def inexact_without_vnni(proto: Any, rules: EngineRules) -> tuple[str, ...]:
    """Return the layers that are exact only on CPUs with VNNI, in the order of the graph.

    Args:
        proto: ``onnx.ModelProto`` with explicit Q/DQ pairs.
        rules: of the engine; the layers it computes in floating point are not among them.
    """
    if not rules.without_vnni:
        return ()
    graph = OnnxGraph(proto.graph)
    verdicts = {verdict.output: verdict for verdict in lint_graph(proto, rules) if verdict.runs_in_integers}
    found = [
        verdict.layer or verdict.node
        for node in graph.nodes
        if node.op_type in ("Conv", *PRODUCTS)
        and (verdict := verdicts.get(node.output[0])) is not None
        and _loses(node, graph, rules.even_weights)
    ]
    return tuple(dict.fromkeys(found))


def separate_weights(proto: Any, rules: EngineRules) -> None:
    """Give each run of a layer that saturates on older CPUs a weight of its own, in place.

    ONNX Runtime refuses a shared one with ``session.x64quantprecision``.
    """
    lossy = set(inexact_without_vnni(proto, rules))
    producers = {output: node for node in proto.graph.node for output in node.output}
    constants = {constant.name: constant for constant in proto.graph.initializer}
    seen: set[str] = set()
    for position, node in reversed(list(enumerate(proto.graph.node))):
        dequantize = producers.get(node.input[1]) if node.op_type == "Conv" else None
        if dequantize is None or dequantize.input[0].partition(MARK_OF_WEIGHTS)[0] not in lossy:
            continue
        if dequantize.name not in seen:
            seen.add(dequantize.name)
            continue
        own = type(dequantize)()
        own.CopyFrom(dequantize)
        own.name = own.output[0] = node.input[1] = f"{dequantize.name}@{node.name}"
        for place in (0, 2):  # weight and zero point
            constant = proto.graph.initializer.add()
            constant.CopyFrom(constants[dequantize.input[place]])
            constant.name = own.input[place] = f"{dequantize.input[place]}@{node.name}"
        proto.graph.node.insert(position, own)


def _loses(layer: Any, graph: OnnxGraph, halves: bool) -> bool:
    """Whether products of the bytes that ``layer`` reads may be rounded or saturate."""
    dequantizer = graph.producer(layer.input[1])
    weight = None if dequantizer is None else graph.constant(dequantizer.input[0])
    if weight is None or weight.dtype != np.int8:
        return False
    limit = None
    node = graph.producer(layer.input[0])
    while node is not None and node.op_type != "QuantizeLinear":
        if node.op_type == "Clip" and len(node.input) > 2:
            limit = graph.constant(node.input[2])
        node = graph.producer(node.input[0])
    dtype = np.uint8 if node is None else np.dtype(graph.grid(node).dtype)
    if dtype == np.int8:
        return halves and (bool((weight % 2).any()) or saturates_as_int8(weight, 127 if limit is None else int(limit)))
    return saturates(weight, 255 if limit is None else int(limit))


def saturates_as_int8(weight: np.ndarray, largest: int) -> bool:
    """Whether OpenVINO's 1x1 kernel for AVX2, which adds 128 to int8 inputs but does not halve weights, may saturate.

    Args:
        weight: int8, shape (out_channels, in_channels, ...), as it is stored.
        largest: of the int8 inputs.
    """
    return all(size == 1 for size in weight.shape[2:]) and saturates(weight, largest + 128)


def saturates(weight: np.ndarray, largest: int) -> bool:
    """Whether the sum of two products that a kernel adds first may leave int16.

    Those are neighbours in the order of height, width and input channel.

    Args:
        weight: int8, shape (out_channels, in_channels, ...).
        largest: of the uint8 inputs, which begin at 0.
    """
    rows = np.moveaxis(weight.astype(np.int64), 1, -1).reshape(len(weight), -1)
    rows = np.pad(rows, ((0, 0), (0, 1)))
    high = np.maximum(rows[:, :-1], 0) + np.maximum(rows[:, 1:], 0)
    low = np.minimum(rows[:, :-1], 0) + np.minimum(rows[:, 1:], 0)
    return bool((high * largest > INT16.max).any() or (low * largest < INT16.min).any())
