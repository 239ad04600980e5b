"""Writing QuantizeLinear / DequantizeLinear pairs around the convolutions of a float ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from srq_nni.errors import ExportError, listing
from srq_nni.quantization.grid import IntegerGrid
from srq_nni.speedup.engine_rules import EngineRules
from srq_nni.speedup.integers import IntegerConv
from srq_nni.speedup.lazy import import_or_explain


class QDQWriter:
    """Changes ``proto`` in place so that its quantized convolutions read integers.

    Tensors and nodes are named after the module: ``body.0.conv1.input_q`` is QuantizeLinear, ``.input_clip`` Clip,
    ``.input_dq`` DequantizeLinear; ``body.0.conv1.weight_q`` is the int8 weight. Scales and zero points are 0-d.
    In every case value = scale of DequantizeLinear x (code - zero point).
    A tensor that several convolutions read on the same grid is quantized once, under the name of the first.
    """

    def __init__(self, proto: Any, rules: EngineRules) -> None:
        self.onnx = import_or_explain("onnx", "onnx")
        self.graph = proto.graph
        self.rules = rules
        self.nodes: list[Any] = []
        self._inputs: dict[tuple[str, IntegerGrid], str] = {}
        self._constants: set[str] = set()

    def write(self, convolutions: Mapping[str, IntegerConv], weights: Mapping[str, torch.Tensor]) -> None:
        """Write the integers of ``convolutions``; ``weights`` are their float weights, by the same names.

        Raises:
            ExportError: if the graph has no Conv node for one of them.
        """
        owners = {f"{name}.weight": name for name in convolutions}
        missing = set(convolutions)
        for node in self.graph.node:
            name = owners.get(node.input[1]) if node.op_type == "Conv" else None
            if name is not None:
                missing.discard(name)
                self._quantize(node, convolutions[name], weights[name])
            else:
                self.nodes.append(node)
        if missing:
            raise ExportError(
                f"the traced network never runs the quantized convolution(s) {listing(sorted(missing))}; "
                "remove their quantizers or export a network that uses them"
            )
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        read = {tensor for node in self.nodes for tensor in node.input}
        kept = [constant for constant in self.graph.initializer if constant.name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _quantize(self, node: Any, layer: IntegerConv, weight: torch.Tensor) -> None:
        if layer.input is not None:
            node.input[0] = self._input(node.input[0], layer.name, layer.input)
        if layer.weight is None or layer.weight_codes is None:
            node.input[1] = self._constant(f"{layer.name}.weight_float", weight.numpy())
        else:
            node.input[1] = self._weight(layer.name, layer.weight, layer.weight_codes)
        if layer.bias_codes is not None and layer.product is not None:
            node.input[2] = self._bias(layer.name, layer.product, layer.bias_codes)
        self.nodes.append(node)
        if layer.bias is not None and layer.weight is not None and self.rules.adds_bias:
            self._move_bias(node, layer.name, layer.bias)

    def _input(self, source: str, name: str, grid: IntegerGrid) -> str:
        """Return the dequantized ``source``; writes Q, the limit of the codes and DQ at its first use."""
        known = self._inputs.get((source, grid))
        if known is not None:
            return known
        shift, dtype = self.rules.zero_point, np.uint8 if self.rules.zero_point else np.int8
        prefix = self._free_name(f"{name}.input")
        scale = self._constant(f"{prefix}_scale", np.array(grid.scale, np.float32))
        zero = self._constant(f"{prefix}_zero_point", np.array(shift, dtype))
        value, step = source, scale
        if self.rules.clip == "float":
            value = self._clip(prefix, source, [_limit(code, grid) for code in (grid.minimum, grid.maximum)])
        if self.rules.rounds_first:
            ratio = self._node("Div", [value, scale], f"{prefix}_div")
            value = self._node("Round", [ratio], f"{prefix}_round")
            step = self._constant("unit_scale", np.array(1, np.float32))
        codes = self._node("QuantizeLinear", [value, step, zero], f"{prefix}_q")
        if self.rules.clip == "integer":
            codes = self._clip(prefix, codes, [np.array(code + shift, dtype) for code in (grid.minimum, grid.maximum)])
        result = self._node("DequantizeLinear", [codes, scale, zero], f"{prefix}_dq")
        self._inputs[source, grid] = result
        return result

    def _weight(self, name: str, grid: IntegerGrid, codes: torch.Tensor) -> str:
        prefix = f"{name}.weight"
        if f"{prefix}_q" in self._constants:
            return f"{prefix}_dq"
        factor = 2 if self.rules.even_weights and bool(((codes >= -64) & (codes <= 63)).all()) else 1
        quantized = self._constant(f"{prefix}_q", (codes * factor).numpy().astype(np.int8))
        scale = self._constant(f"{prefix}_scale", np.array(grid.scale / factor, np.float32))
        zero = self._constant(f"{prefix}_zero_point", np.array(0, np.int8))
        return self._node("DequantizeLinear", [quantized, scale, zero], f"{prefix}_dq")

    def _bias(self, name: str, product: float, codes: torch.Tensor) -> str:
        prefix = f"{name}.bias"
        if self.rules.clip == "float":
            return self._constant(f"{prefix}_on_grid", codes.numpy().astype(np.float32) * np.float32(product))
        if f"{prefix}_q" in self._constants:
            return f"{prefix}_dq"
        quantized = self._constant(f"{prefix}_q", codes.numpy().astype(np.int32))
        scale = self._constant(f"{prefix}_scale", np.array(product, np.float32))
        return self._node("DequantizeLinear", [quantized, scale], f"{prefix}_dq")

    def _move_bias(self, node: Any, name: str, bias: torch.Tensor) -> None:
        """Write the bias as an Add after ``node``."""
        output = node.output[0]
        node.output[0] = f"{output}_before_bias"
        del node.input[2]
        column = self._constant(f"{name}.bias_column", bias.view(1, -1, 1, 1).numpy())
        self.nodes.append(
            self.onnx.helper.make_node("Add", [node.output[0], column], [output], name=f"{node.name}_bias")
        )

    def _clip(self, prefix: str, source: str, limits: list[np.ndarray]) -> str:
        low = self._constant(f"{prefix}_min", limits[0])
        high = self._constant(f"{prefix}_max", limits[1])
        return self._node("Clip", [source, low, high], f"{prefix}_clip")

    def _node(self, kind: str, inputs: list[str], output: str) -> str:
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [output], name=output))
        return output

    def _constant(self, name: str, value: np.ndarray) -> str:
        if name not in self._constants:
            self._constants.add(name)
            self.graph.initializer.append(self.onnx.numpy_helper.from_array(value, name))
        return name

    def _free_name(self, prefix: str) -> str:
        """Return ``prefix``, or ``prefix@2``, ``prefix@3`` ... for a module that runs several times."""
        candidate, count = prefix, 1
        while f"{candidate}_scale" in self._constants:
            count += 1
            candidate = f"{prefix}@{count}"
        return candidate


def _limit(code: int, grid: IntegerGrid) -> np.ndarray:
    """Return the value of ``code`` as the engine computes it, a 0-d float32."""
    return np.array(code * np.float32(grid.scale), np.float32)
