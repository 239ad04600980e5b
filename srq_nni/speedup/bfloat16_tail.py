"""Writes the float convolutions behind the last quantizer in bfloat16, and leaves all before it in float32.

A quantizer gives each value the nearest code. What is rounded to bfloat16 before it gets another code now and then, at
few bits a far one; what is rounded behind it is off by that rounding alone. ``benchmarks/exactness.py`` measures both.

A Cast of OpenVINO 2026.4 does not round to the nearest bfloat16: it rounds up from odd ones only, which makes images
darker by a quarter of a grey level. So constants are rounded here, and what enters the tail is rounded by arithmetic in
float32 before its Cast, which then has nothing left to round.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from srq_nni.speedup.lazy import import_or_explain
from srq_nni.speedup.onnx_graph import OnnxGraph

SUFFIX = "@bfloat16"
SPLITTER = "@splitter"
SPLIT = 2.0**16 + 1  # leaves 8 of the 24 bits of a float32 (T. J. Dekker 1971, 10.1007/BF01397083)
# What may stand between two convolutions of the tail; anything else there stays in float32.
BETWEEN = frozenset({"Add", "BatchNormalization", "DepthToSpace", "LeakyRelu", "PRelu", "Relu"})


def tail_in_bfloat16(proto: Any) -> Any:
    """Return a copy of a graph whose tail computes in bfloat16: float convolutions that no quantizer depends on.

    What these hand on to one another is bfloat16, too; the last one's output and what follows are float32 again.

    Args:
        proto: ``onnx.ModelProto`` with explicit Q/DQ pairs, nodes in topological order.
    """
    onnx = import_or_explain("onnx", "onnx")
    constants = OnnxGraph(proto.graph)
    tail = _tail(proto.graph, constants)
    ours = [node for node in proto.graph.node if node.output[0] in tail]
    others = [node for node in proto.graph.node if node.output[0] not in tail]
    read_outside = {name for node in others for name in node.input} | {output.name for output in proto.graph.output}
    in_bfloat16 = {name for node in ours for name in node.output}
    nodes, rounded = [], []
    for node in proto.graph.node:
        if node.output[0] not in tail:
            nodes.append(node)
            continue
        for name in node.input:
            if name and name not in in_bfloat16:
                in_bfloat16.add(name)
                value = constants.constant(name)
                if value is None:
                    nodes.extend(_rounding_cast(name))
                else:
                    rounded.append(_rounded(value, name + SUFFIX))
        nodes.append(_renamed(node))
        for name in node.output:
            if name in read_outside:
                nodes.append(_cast(name + SUFFIX, name, onnx.TensorProto.FLOAT))
    written = onnx.ModelProto()
    written.CopyFrom(proto)
    del written.graph.node[:], written.graph.value_info[:]
    written.graph.node.extend(nodes)
    written.graph.initializer.extend(rounded)
    if rounded:
        written.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(SPLIT), SPLITTER))
    return written


def _tail(graph: Any, constants: OnnxGraph) -> set[str]:
    """Return the first output of each node of the tail."""
    before_a_quantizer: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type == "QuantizeLinear" or before_a_quantizer & set(node.output):
            before_a_quantizer |= set(node.input)
    convolutions, reached = set[str](), set[str]()
    for node in graph.node:
        (output, *_) = node.output
        if output in before_a_quantizer:
            continue
        if node.op_type == "Conv" and constants.constant(node.input[1]) is not None:
            convolutions.add(output)
            reached.add(output)
        elif node.op_type in BETWEEN and reached & set(node.input):
            reached.add(output)
    tail, read = set(convolutions), set[str]()  # what no convolution reads in the end is not in the tail
    for node in reversed(graph.node):
        if node.output[0] in reached & read:
            tail.add(node.output[0])
        if node.output[0] in tail:
            read |= set(node.input)
    return tail


def _cast(source: str, target: str, to: int) -> Any:
    onnx = import_or_explain("onnx", "onnx")
    return onnx.helper.make_node("Cast", [source], [target], name=f"{target}:cast", to=to)


def _rounding_cast(source: str) -> list[Any]:
    """Return nodes that write a tensor in bfloat16, rounded to nearest: far = SPLIT * x; x' = far - (far - x)."""
    onnx = import_or_explain("onnx", "onnx")
    far, below, nearest = (f"{source}{SUFFIX}_{part}" for part in ("far", "below", "nearest"))
    return [
        onnx.helper.make_node("Mul", [source, SPLITTER], [far], name=far),
        onnx.helper.make_node("Sub", [far, source], [below], name=below),
        onnx.helper.make_node("Sub", [far, below], [nearest], name=nearest),
        _cast(nearest, source + SUFFIX, onnx.TensorProto.BFLOAT16),
    ]


def _rounded(value: np.ndarray, name: str) -> Any:
    """Return a constant in bfloat16, rounded to nearest."""
    onnx = import_or_explain("onnx", "onnx")
    bits = torch.from_numpy(np.array(value, np.float32)).bfloat16().view(torch.int16).numpy()
    return onnx.helper.make_tensor(name, onnx.TensorProto.BFLOAT16, value.shape, bits.tobytes(), raw=True)


def _renamed(node: Any) -> Any:
    """Return a copy of a node that reads and writes the tensors in bfloat16."""
    copy = type(node)()
    copy.CopyFrom(node)
    copy.input[:] = [name and name + SUFFIX for name in node.input]
    copy.output[:] = [name + SUFFIX for name in node.output]
    return copy
