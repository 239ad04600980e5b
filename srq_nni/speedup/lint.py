"""Which convolutions of an ONNX file will run in integers on an engine, and why the others will not.

It reads the graph and runs nothing. ``precision_report()`` of a speedup counts what an engine then really ran.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from srq_nni.speedup.engine_rules import EngineRules
from srq_nni.speedup.lazy import import_or_explain

NODES = ("Conv", "Gemm", "MatMul")
MARK_OF_WEIGHTS = ".weight_q"


@dataclass(frozen=True)
class Verdict:
    """What an engine will do with one convolution or matrix product.

    Attributes:
        node: name of the node in the graph.
        layer: module path, empty for a node whose weight is not quantized.
        reason: why it will not run in integers; empty if it will.
    """

    node: str
    layer: str
    reason: str

    @property
    def runs_in_integers(self) -> bool:
        """Whether both operands are integers that the engine multiplies as such."""
        return not self.reason


def lint_graph(proto: Any, rules: EngineRules) -> tuple[Verdict, ...]:
    """Return the verdict on every convolution and matrix product with a constant weight, in the order of the graph.

    Args:
        proto: ``onnx.ModelProto`` with explicit Q/DQ pairs.
        rules: of the engine.
    """
    return _Linter(proto.graph, rules).verdicts()


class _Linter:
    def __init__(self, graph: Any, rules: EngineRules) -> None:
        self.graph, self.rules = graph, rules
        to_array = import_or_explain("onnx", "onnx").numpy_helper.to_array
        self.constants = {constant.name: to_array(constant) for constant in graph.initializer}
        self.producers = {output: node for node in graph.node for output in node.output}
        self.consumers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.outputs = {output.name for output in graph.output}

    def verdicts(self) -> tuple[Verdict, ...]:
        nodes = [node for node in self.graph.node if node.op_type in NODES and self._has_constant_weight(node)]
        return tuple(Verdict(node.name, self._layer(node), self._reason(node)) for node in nodes)

    def _has_constant_weight(self, node: Any) -> bool:
        return node.input[1] in self.constants or self._stored(node.input[1]) is not None

    def _layer(self, node: Any) -> str:
        producer = self.producers.get(node.input[1])
        stored = producer.input[0] if producer is not None and producer.op_type == "DequantizeLinear" else ""
        return stored.removesuffix(MARK_OF_WEIGHTS)

    def _stored(self, tensor: str) -> np.ndarray | None:
        """Return the integers behind a dequantized constant."""
        producer = self.producers.get(tensor)
        if producer is None or producer.op_type != "DequantizeLinear":
            return None
        return self.constants.get(producer.input[0])

    def _reason(self, node: Any) -> str:
        before = self.producers.get(node.input[0])
        padded = before is not None and before.op_type == "Pad"
        if not self._reads_codes(before.input[0] if padded and before is not None else node.input[0]):
            return "its input is not quantized"
        if padded and not self.rules.pads_codes:
            return "a Pad stands between its quantizer and it"
        stored = self._stored(node.input[1])
        if stored is None:
            return "its weight is not quantized"
        if stored.dtype != np.int8 and not self.rules.needs_output_quantizer:
            return f"its weight is {stored.dtype} with a zero point, and {self.rules.name} multiplies int8 weights"
        if self.rules.needs_output_quantizer:
            return self._reason_behind(node)
        return ""

    def _reads_codes(self, tensor: str) -> bool:
        node = self.producers.get(tensor)
        if node is None or node.op_type != "DequantizeLinear":
            return False
        node = self.producers.get(node.input[0])
        while node is not None and node.op_type in ("Clip", "DepthToSpace"):
            node = self.producers.get(node.input[0])
        return node is not None and node.op_type == "QuantizeLinear"

    def _reason_behind(self, node: Any) -> str:
        """Return why the output of ``node`` does not go straight into one quantizer."""
        kind = "convolution" if node.op_type == "Conv" else "matrix product"
        rule = f"{self.rules.name} runs a {kind} in integers only if its output is quantized"
        following = self.consumers.get(node.output[0], [])
        if len(following) == 1 and following[0].op_type == "Relu":
            following = self.consumers.get(following[0].output[0], [])
        kinds = sorted({reader.op_type for reader in following})
        if kinds == ["QuantizeLinear"]:
            several = len(following) > 1
            return f"{rule}, and {len(following)} quantizers read this one's" if several else ""
        return f"{rule}, and this one's goes to {', '.join(kinds) or 'the output of the network'}"
