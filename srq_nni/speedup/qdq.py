"""Writing QuantizeLinear / DequantizeLinear pairs in place of the markers of a traced graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from srq_nni.errors import ExportError, listing
from srq_nni.quantization.grid import IntegerGrid
from srq_nni.speedup.byte_products import saturates, saturates_as_int8
from srq_nni.speedup.engine_rules import INT8, Container, EngineRules
from srq_nni.speedup.integers import IntegerActivation, IntegerConv, IntegerNetwork, finest_multiple
from srq_nni.speedup.lazy import import_or_explain
from srq_nni.speedup.markers import ACTIVATION, DOMAIN, WEIGHT
from srq_nni.speedup.placement import Placement, hoist_above_concat, take_over_pixel_shuffles

LAYER_NODES = ("Conv", "Gemm", "MatMul")


class QDQWriter:
    """Changes ``proto`` in place so that its quantized layers read integers.

    Tensors and nodes are named after the place: ``body.0.conv1.input_q`` is QuantizeLinear, ``.input_clip`` Clip,
    ``.input_dq`` DequantizeLinear; ``body.0.conv1.weight_q`` is the int8 weight, constant or (TensorRT) QuantizeLinear
    of the constant ``body.0.conv1.weight_value``. Scales and zero points are 0-d.
    In every case value = scale of DequantizeLinear x (code - zero point).
    A tensor that several quantizers read on the same grid is quantized once, under the name of the first.
    """

    def __init__(self, proto: Any, rules: EngineRules) -> None:
        self.onnx = import_or_explain("onnx", "onnx")
        self.graph = proto.graph
        self.rules = rules
        self.nodes: list[Any] = []
        self._names: dict[str, str] = {}  # of a marker's output -> the tensor that takes its place
        self._image_codes: dict[str, tuple[str, str]] = {}  # of a gated marker's output -> (codes, step)
        self._written: dict[tuple[str, IntegerGrid], str] = {}
        self._shuffles: dict[str, Any] = {}  # of a marker's output -> the DepthToSpace of its codes
        self._constants: set[str] = set()
        self._unsigned: set[str] = set()  # names of quantizers

    def write(self, integers: IntegerNetwork, weights: Mapping[str, torch.Tensor]) -> None:
        """Write ``integers``; ``weights`` are the float weights of its layers, by the same names.

        Raises:
            ExportError: if the graph never runs one of the layers, or codes fit nothing the engine takes.
        """
        if self.rules.hoists_quantizers:
            hoist_above_concat(self.graph, integers)
        if self.rules.shuffles_codes:
            self._shuffles = take_over_pixel_shuffles(self.graph, integers)
        placement = Placement(self.graph)
        self._unsigned = self._inputs_better_unsigned(integers, placement)
        missing = {name for name, layer in integers.layers.items() if layer.weight is not None}
        owners: dict[str, str] = {}  # of a weight marker's output -> the layer
        for node in list(self.graph.node):
            if node.domain == DOMAIN:
                name = _name(node)
                if node.op_type == WEIGHT:
                    missing.discard(name)
                    owners[node.output[0]] = name
                    halved = self._may_be_halved(node, integers, placement)
                    self._names[node.output[0]] = self._weight(integers.layers[name], halved)
                else:
                    assert node.op_type == ACTIVATION
                    self._activation(node, integers.activations[name], placement.is_nonnegative(node.input[0]))
                continue
            self._other(node, integers, owners, placement)
        if missing:
            raise ExportError(
                f"the traced network never runs the quantized convolution(s) {listing(sorted(missing))}; "
                "remove their quantizers or export a network that uses them"
            )
        self._replace_nodes()

    def _replace_nodes(self) -> None:
        for output in self.graph.output:  # a quantizer may end the network
            if output.name in self._names:
                self._node("Identity", [self._names[output.name]], output.name)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        read = {tensor for node in self.nodes for tensor in node.input}
        kept = [constant for constant in self.graph.initializer if constant.name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _activation(self, node: Any, activation: IntegerActivation, nonnegative: bool) -> None:
        source, output = self._names.get(node.input[0], node.input[0]), node.output[0]
        if activation.grid is None:
            inputs = [self._names.get(name, name) for name in node.input[1:]]
            self._gated_activation(source, output, activation, inputs, nonnegative)
            return
        shuffle = self._shuffles.get(output)
        known = self._written.get((source, activation.grid)) if shuffle is None else None
        if known is None:
            known = self._static_activation(source, activation, activation.grid, nonnegative, shuffle)
        if shuffle is None:
            self._written[source, activation.grid] = known
        self._names[output] = known

    def _static_activation(
        self, source: str, activation: IntegerActivation, grid: IntegerGrid, nonnegative: bool, shuffle: Any
    ) -> str:
        """Write Q, the limit of the codes, ``shuffle`` if there is one, and DQ; return the dequantized tensor."""
        container = self._container(activation, nonnegative)
        if container is None:
            raise self._unfit(activation.name, grid)
        prefix = self._free_name(activation.name)
        scale = self._constant(f"{prefix}_scale", np.array(grid.scale, np.float32))
        zero = self._constant(f"{prefix}_zero_point", np.array(container.zero_point, container.dtype))
        low = 0 if nonnegative else grid.minimum
        value, step = source, scale
        limited = not self._ends_as_codes_do(container, low, grid.maximum, nonnegative)
        if self.rules.clip == "float" and limited:
            value = self._clip(prefix, source, _value(low, grid), _value(grid.maximum, grid))
        if self.rules.rounds_first:
            value = self._node("Round", [self._node("Div", [value, scale], f"{prefix}_div")], f"{prefix}_round")
            step = self._constant("unit_scale", np.array(1, np.float32))
        codes = self._node("QuantizeLinear", [value, step, zero], f"{prefix}_q")
        if self.rules.clip == "integer" and limited:
            limits = (np.array(code + container.zero_point, container.dtype) for code in (low, grid.maximum))
            codes = self._clip(prefix, codes, *limits)
        if shuffle is not None:
            shuffle.input[0], codes = codes, shuffle.output[0]
            self.nodes.append(shuffle)
        return self._node("DequantizeLinear", [codes, scale, zero], f"{prefix}_dq")

    def _unfit(self, name: str, grid: IntegerGrid) -> ExportError:
        return ExportError(
            f"the codes of '{name}' run from {grid.minimum} to {grid.maximum} at {grid.bits} bits, and "
            f"{self.rules.name} takes int8 (-128 to 127) with zero point 0; "
            "use 7 bits or fewer for DDTB, PAMS at 8 bits, or another engine"
        )

    def _ends_as_codes_do(self, container: Container, low: int, high: int, nonnegative: bool) -> bool:
        """Whether the byte saturates where the codes end, so that no Clip is needed."""
        ends = (nonnegative or low == container.minimum) and high == container.maximum
        return ends and not (self.rules.even_weights and container is INT8)

    def _gated_activation(
        self, source: str, output: str, activation: IntegerActivation, inputs: list[str], nonnegative: bool
    ) -> None:
        """Divide by the step of each image before a Q and DQ of scale 1; convolutions multiply by it afterwards.

        Engines take constant scales only. Codes that do not fit a byte stay in floating point.
        """
        step, low, high = inputs
        prefix = self._free_name(activation.name)
        ratio = self._node("Div", [source, step], f"{prefix}_div")
        rounded = self._node("Round", [ratio], f"{prefix}_round")
        above = self._node("Max", [rounded, low], f"{prefix}_above")
        codes = self._node("Min", [above, high], f"{prefix}_codes")
        container = self._container(activation, nonnegative)
        unit = codes
        if container is not None:
            scale = self._constant(f"{prefix}_scale", np.array(1, np.float32))
            zero = self._constant(f"{prefix}_zero_point", np.array(container.zero_point, container.dtype))
            stored = self._node("QuantizeLinear", [codes, scale, zero], f"{prefix}_q")
            if self.rules.even_weights:  # it limits nothing, but tells the engine how wide the codes are
                largest = activation.largest_magnitude
                limits = (0 if nonnegative else -largest, largest)
                stored = self._clip(prefix, stored, *(np.array(limit, container.dtype) for limit in limits))
            unit = self._node("DequantizeLinear", [stored, scale, zero], f"{prefix}_dq")
        else:
            self._constant(f"{prefix}_scale", np.array(1, np.float32))
        self._image_codes[output] = (unit, step)
        self._names[output] = self._node("Mul", [unit, step], f"{prefix}_value")

    def _container(self, activation: IntegerActivation, nonnegative: bool) -> Container | None:
        """Return the byte for the codes; with a gate, one that holds those of any image."""
        if activation.grid is not None:
            return self.rules.container(activation.grid, nonnegative, unsigned=activation.name in self._unsigned)
        largest = activation.largest_magnitude
        found = self.rules.container(IntegerGrid(1.0, -largest, largest, activation.bits), nonnegative)
        return found if found is None or found.holds(0 if nonnegative else -largest, largest) else None

    def _inputs_better_unsigned(self, integers: IntegerNetwork, placement: Placement) -> set[str]:
        """Return the quantizers before weights that an engine would round or saturate, but not with uint8."""
        better: set[str] = set()
        worse: set[str] = set()
        for weight in [node for node in self.graph.node if node.domain == DOMAIN and node.op_type == WEIGHT]:
            if not self._may_be_halved(weight, integers, placement):
                continue
            layer = integers.layers[_name(weight)]
            assert layer.weight is not None and layer.weight_codes is not None
            codes = layer.weight_codes.numpy() * layer.fineness
            stored = layer.weight_codes.numpy() * _factor(layer, halved=True)
            odd = bool((stored % 2).any())
            for node in placement.inputs_of_weight(weight):
                activation = integers.activations[_name(node)]
                if activation.grid is not None:
                    if saturates(codes, activation.grid.levels - 1):
                        worse.add(activation.name)
                    elif odd or saturates_as_int8(stored, activation.grid.maximum):
                        better.add(activation.name)
        return better - worse

    def _may_be_halved(self, weight: Any, integers: IntegerNetwork, placement: Placement) -> bool:
        """Whether an engine that halves the weights of int8 x int8 convolutions does so with this one."""
        return self.rules.even_weights and any(
            self._container(integers.activations[_name(node)], placement.is_nonnegative(node.input[0])) is INT8
            for node in placement.inputs_of_weight(weight)
        )

    def _weight(self, layer: IntegerConv, halved: bool) -> str:
        """Write the stored weight; return the dequantized one."""
        prefix = f"{layer.name}.weight"
        if f"{prefix}_scale" in self._constants:
            return f"{prefix}_dq"
        grid, codes = layer.weight, layer.weight_codes
        assert grid is not None and codes is not None
        container = INT8 if INT8.holds(grid.minimum, grid.maximum) else self.rules.container(grid, False)
        if container is None:
            raise self._unfit(prefix, grid)
        factor = _factor(layer, halved)
        step = np.array(grid.scale, np.float32) / np.float32(factor)  # a power of two
        stored = (codes * factor + container.zero_point).numpy().astype(container.dtype)
        scale = self._constant(f"{prefix}_scale", step)
        zero = self._constant(f"{prefix}_zero_point", np.full(step.shape, container.zero_point, container.dtype))
        axis = {"axis": 0} if step.ndim else {}
        if self.rules.stores_integers:
            quantized = self._constant(f"{prefix}_q", stored)
        else:
            steps = step.reshape(-1, *[1] * (stored.ndim - 1)) if step.ndim else step
            value = self._constant(f"{prefix}_value", stored * steps)  # multiples of it, so Q gives the codes back
            quantized = self._node("QuantizeLinear", [value, scale, zero], f"{prefix}_q", **axis)
        return self._node("DequantizeLinear", [quantized, scale, zero], f"{prefix}_dq", **axis)

    def _other(self, node: Any, integers: IntegerNetwork, owners: Mapping[str, str], placement: Placement) -> None:
        """Write a node that is no marker; a layer with an integer weight gets its bias and the step of each image."""
        takes_weight = node.op_type in LAYER_NODES and len(node.input) > 1
        owner = owners.get(node.input[1]) if takes_weight else None
        codes, step = self._image_codes.get(node.input[0], ("", "")) if node.op_type == "Conv" and owner else ("", "")
        for position, name in enumerate(node.input):
            node.input[position] = self._names.get(name, name)
        if takes_weight and owner is None and self.rules.needs_output_quantizer:
            node.input[0] = self._kept_from_layers(node.input[0])
        if owner is None or node.op_type != "Conv":
            self.nodes.append(node)
            return
        layer = integers.layers[owner]
        column = self._bias(node, layer, bool(step), placement)
        self.nodes.append(node)
        if step:
            node.input[0] = codes
            self._after(node, "Mul", step, "step")
        if column:
            self._after(node, "Add", column, "bias")

    def _bias(self, node: Any, layer: IntegerConv, gated: bool, placement: Placement) -> str:
        """Give ``node`` its bias, or return the constant that has to be added to its output."""
        bias, step = layer.bias, None if layer.product is None else layer.product / layer.fineness
        if layer.bias_codes is not None:
            assert step is not None
            bias = layer.bias_codes.float() * step
        if bias is None:
            return ""
        prefix = f"{layer.name}.bias"
        if gated or (self.rules.needs_output_quantizer and not placement.is_requantized(node)):
            del node.input[2]
            return self._constant(f"{prefix}_column", bias.view(1, -1, 1, 1).numpy())
        if layer.bias_codes is None:
            return ""
        if not self.rules.stores_integers:
            node.input[2] = self._constant(f"{prefix}_on_grid", bias.numpy())
            return ""
        if f"{prefix}_q" not in self._constants:
            quantized = self._constant(f"{prefix}_q", layer.bias_codes.numpy().astype(np.int32))
            assert step is not None
            scale = self._constant(f"{prefix}_scale", step.numpy())
            self._node("DequantizeLinear", [quantized, scale], f"{prefix}_dq", **({"axis": 0} if step.dim() else {}))
        node.input[2] = f"{prefix}_dq"
        return ""

    def _kept_from_layers(self, tensor: str) -> str:
        """Return a dequantized tensor by way of a Mul: reading DequantizeLinear an engine would round float weights."""
        kept = f"{tensor}_kept"
        written = {node.output[0]: node for node in self.nodes}
        dequantize = written.get(tensor)
        if dequantize is not None and dequantize.op_type == "DequantizeLinear" and kept not in written:
            codes, scale, zero = dequantize.input
            unit = self._constant("unit_scale", np.array(1, np.float32))
            self._node("Mul", [self._node("DequantizeLinear", [codes, unit, zero], f"{tensor}_whole"), scale], kept)
            return kept
        return kept if kept in written else tensor

    def _after(self, node: Any, kind: str, operand: str, what: str) -> None:
        """Put an operation between ``node`` (and what was put there before) and its consumers."""
        last = self.nodes[-1]
        output = last.output[0]
        last.output[0] = f"{output}_before_{what}"
        node_name = f"{node.name}_{what}"
        self.nodes.append(self.onnx.helper.make_node(kind, [last.output[0], operand], [output], name=node_name))

    def _clip(self, prefix: str, source: str, low: np.ndarray, high: np.ndarray) -> str:
        limits = [self._constant(f"{prefix}_min", low), self._constant(f"{prefix}_max", high)]
        return self._node("Clip", [source, *limits], f"{prefix}_clip")

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: int) -> str:
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def _constant(self, name: str, value: np.ndarray) -> str:
        if name not in self._constants:
            self._constants.add(name)
            self.graph.initializer.append(self.onnx.numpy_helper.from_array(value, name))
        return name

    def _free_name(self, prefix: str) -> str:
        """Return ``prefix``, or ``prefix@2``, ``prefix@3`` ... for a quantizer that runs several times."""
        candidate, count = prefix, 1
        while f"{candidate}_scale" in self._constants:
            count += 1
            candidate = f"{prefix}@{count}"
        return candidate


def _name(marker: Any) -> str:
    return str(marker.attribute[0].s.decode())


def _value(code: int, grid: IntegerGrid) -> np.ndarray:
    """Return the value of ``code`` as the engine computes it, a 0-d float32."""
    return np.array(code * np.array(grid.scale, np.float32), np.float32)


def _factor(layer: IntegerConv, halved: bool) -> int:
    """Return by what the weight codes are multiplied in the file."""
    assert layer.weight is not None
    return max(layer.fineness, min(2, finest_multiple(layer.weight))) if halved else layer.fineness
