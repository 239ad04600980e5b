"""What a summary asks of an ONNX graph: layers, bits, sources, sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from srq_nni.errors import ExportError
from srq_nni.quantization.grid import MAX_BITS, MIN_BITS
from srq_nni.speedup.lazy import import_or_explain
from srq_nni.speedup.lint import MARK_OF_WEIGHTS
from srq_nni.speedup.lint_rules import PRODUCTS, QUANTIZED_NODES
from srq_nni.speedup.onnx_graph import OnnxGraph

TRAINED = {"BatchNormalization": (1, 2), "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2), "PRelu": (1,)}
NODES = ("Conv", *PRODUCTS)
BETWEEN = ("Clip", "DepthToSpace", "Pad")  # what may stand between a quantizer and its reader
_GATE = re.compile(r"_quantizer\.image_codes\.gate\.")  # in the names of the constants of DDTB's gates


class GraphReader:
    """Reads an ``onnx.ModelProto`` of a super-resolution network.

    Attributes:
        layers: convolutions and matrix products with a constant weight, without those of gates.
        metadata: ``metadata_props``.

    Raises:
        ExportError: if there are no such layers, or some are written as integer operators instead of Q/DQ pairs.
    """

    def __init__(self, proto: Any) -> None:
        self._onnx = import_or_explain("onnx", "onnx")
        self._proto = proto
        self.metadata = {entry.key: entry.value for entry in proto.metadata_props}
        self._graph = OnnxGraph(proto.graph)
        integers = next((node.op_type for node in proto.graph.node if node.op_type in QUANTIZED_NODES), None)
        if integers is not None:
            raise ExportError(
                f"it has convolutions as {integers}, whose bits srq summary does not read; give the file with "
                "QuantizeLinear / DequantizeLinear pairs that it was made from, or use lint_onnx"
            )
        found = [node for node in proto.graph.node if node.op_type in NODES and self._weight(node) is not None]
        self.layers = [node for node in found if not _GATE.search(self._weight_name(node))]
        if not self.layers:
            raise ExportError("it holds no convolution with a constant weight; give a super-resolution network")

    def name(self, node: Any) -> str:
        """Return the module path of a layer, which the exporter keeps in the name of the weight."""
        return self._weight_name(node).removesuffix(MARK_OF_WEIGHTS).removesuffix(".weight")

    def weight_count(self, node: Any) -> int:
        """Return the number of weights of a layer."""
        weight = self._weight(node)
        assert weight is not None
        return int(weight.size)

    def bias_count(self, node: Any) -> int:
        """Return the number of biases of a layer, whether its own input or added after it."""
        if len(node.input) > 2:
            stored = self._dequantized(node.input[2])
            bias = self._graph.constant(node.input[2]) if stored is None else stored[0]
        else:
            bias = self._graph.constant(f"{self.name(node)}.bias_column")
        return 0 if bias is None else int(bias.size)

    def weight_bits(self, node: Any) -> int | None:
        """Return the bits that the integers of a weight need, None for a float.

        A common factor is no bit, and codes that are all odd beside it have a level for every second one.
        """
        stored = self._dequantized(node.input[1])
        if stored is None:
            return None
        codes = stored[0].astype(np.int64) - stored[1]
        codes //= int(np.gcd.reduce(np.abs(codes).ravel())) or 1
        low, high = int(codes.min()), int(codes.max())
        odd = bool((codes % 2).all())
        return self._named(((high - low) // 2).bit_length() if odd else self._needed(low, high), "weight_bits")

    def source(self, node: Any) -> Any:
        """Return the QuantizeLinear that wrote the codes which a layer reads, or None if it reads a float."""
        before = self._before(node.input[0])
        if before is None or before.op_type != "DequantizeLinear":
            return None
        before = self._before(before.input[0])
        return before if before is not None and before.op_type == "QuantizeLinear" else None

    def place(self, layer: str, source: Any) -> str:
        """Return which quantizer ``source`` is: ``own`` or its place, as in ``Convolution.source``."""
        place = str(source.name).removesuffix("_q")
        return "own" if place == f"{layer}.input" else place

    def is_gated(self, source: Any) -> bool:
        """Whether a gate limits the codes of ``source`` for each image."""
        return self._image_step(source) is not None

    def activation_bits(self, source: Any) -> int:
        """Return the bits of the codes that ``source`` writes."""
        step = self._image_step(source)
        if step is not None:
            return round(math.log2(step + 1))
        dtype = self._zero_point(source)
        limits = self._limits(source, int(dtype))
        kind = np.iinfo(dtype.dtype)
        low, high = (kind.min - int(dtype), kind.max - int(dtype)) if limits is None else limits
        return self._named(self._needed(low, high), "activation_bits")

    def gate_constants(self) -> dict[str, int]:
        """Return the trained tensors of gates with their number of values."""
        names = {name for node in self._proto.graph.node for name in node.input if _GATE.search(name)}
        trained = (".reduce", ".expand", ".norm.weight", ".norm.bias")
        values = {name: self._graph.constant(name) for name in sorted(names) if name.endswith(trained)}
        return {name: int(value.size) for name, value in values.items() if value is not None}

    def other_parameters(self) -> int:
        """Return the number of trained values that belong to no layer: normalisations and PReLUs."""
        names = {
            node.input[index]
            for node in self._proto.graph.node
            for index in TRAINED.get(node.op_type, ())
            if index < len(node.input) and not _GATE.search(node.input[index])
        }
        values = [self._graph.constant(name) for name in names]
        return sum(int(value.size) for value in values if value is not None)

    def scale(self) -> int:
        """Return how many times wider the output image is than the input, at least 1."""
        size = (16, 16)
        shape = self._shapes(size).get(self._proto.graph.output[0].name, ())
        if len(shape) != 4:
            raise ExportError("its output is no image (N, C, H, W); give a super-resolution network")
        return max(round(shape[-1] / size[1]), 1)

    def count_macs(self, size: tuple[int, int]) -> dict[str, int]:
        """Return the multiply-accumulates of each layer, by the name of its output, for an input of (height, width)."""
        shapes = self._shapes(size)
        counted = {}
        for node in self.layers:
            weight = self._weight(node)
            assert weight is not None
            if node.output[0] not in shapes:
                name = node.name or node.output[0]
                raise ExportError(
                    f"the size of the output of node '{name}' is not known; give a network of fixed scale"
                )
            each = math.prod(weight.shape[1:]) if node.op_type == "Conv" else self._summed(node, weight)
            counted[node.output[0]] = math.prod(shapes[node.output[0]]) * each
        return counted

    def _summed(self, node: Any, weight: np.ndarray) -> int:
        transposed = any(item.name == "transB" and item.i for item in node.attribute)
        return weight.shape[1] if transposed else weight.shape[0]

    def _shapes(self, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor whose shape follows from an input of ``size``."""
        proto = self._onnx.ModelProto()
        proto.CopyFrom(self._proto)
        stored = {item.name for item in proto.graph.initializer}
        inputs = [item for item in proto.graph.input if item.name not in stored]
        shape = inputs[0].type.tensor_type.shape if len(inputs) == 1 else None
        if shape is None or len(shape.dim) != 4:
            raise ExportError("its input is no image (N, C, H, W); give a super-resolution network")
        for dimension, value in zip((shape.dim[0], *shape.dim[2:]), (1, *size), strict=True):
            dimension.dim_value = value
        for item in (*proto.graph.output, *proto.graph.value_info):
            item.type.tensor_type.ClearField("shape")
        try:
            proto = self._onnx.shape_inference.infer_shapes(proto, data_prop=True)
        except self._onnx.shape_inference.InferenceError as error:
            reason = str(error).strip().splitlines()[0]
            raise ExportError(f"it does not fit an input of {size[0]}x{size[1]} ({reason}); export it again") from error
        return dict(self._known(proto.graph))

    def _known(self, graph: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
        for item in (*graph.value_info, *graph.output):
            dims = item.type.tensor_type.shape.dim
            if dims and all(dimension.HasField("dim_value") for dimension in dims):
                yield item.name, tuple(dimension.dim_value for dimension in dims)

    def _weight(self, node: Any) -> np.ndarray | None:
        stored = self._dequantized(node.input[1])
        return self._graph.constant(node.input[1]) if stored is None else stored[0]

    def _weight_name(self, node: Any) -> str:
        producer: Any = self._graph.producer(node.input[1])
        quantized = producer is not None and producer.op_type == "DequantizeLinear"
        return str(producer.input[0] if quantized else node.input[1])

    def _dequantized(self, name: str) -> tuple[np.ndarray, int] | None:
        """Return (integers, zero point) of a constant that is stored as integers, or quantized in the graph."""
        node = self._graph.producer(name)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        zero_point = self._graph.constant(node.input[2]) if len(node.input) > 2 else None
        stored, zero = self._graph.constant(node.input[0]), 0 if zero_point is None else int(zero_point.ravel()[0])
        writer = self._graph.producer(node.input[0])
        if stored is None and writer is not None and writer.op_type == "QuantizeLinear":
            values, scale = self._graph.constant(writer.input[0]), self._graph.constant(writer.input[1])
            if values is not None and scale is not None:
                steps = scale.reshape(-1, *[1] * (values.ndim - 1)) if scale.ndim else scale
                stored = np.rint(values / steps) + zero
        return None if stored is None else (stored, zero)

    def _before(self, name: str, passed: tuple[str, ...] = BETWEEN) -> Any:
        """Return the node that decides the values of a tensor, past those that only limit or move them."""
        node: Any = self._graph.producer(name)
        while node is not None and node.op_type in passed:
            node = self._graph.producer(node.input[0])
        return node

    def _zero_point(self, source: Any) -> Any:
        given = self._graph.constant(source.input[2]) if len(source.input) > 2 else None
        return np.uint8(0) if given is None else given.ravel()[0]

    def _limits(self, source: Any, zero_point: int) -> tuple[int, int] | None:
        """Return the codes between which a Clip of codes behind ``source``, or of values before it, keeps them."""
        clip = next((node for node in self._graph.readers(source.output[0]) if node.op_type == "Clip"), None)
        before = self._graph.producer(source.input[0])
        scale, offset = np.ones(()), zero_point
        if clip is None and before is not None and before.op_type == "Clip":
            given = self._graph.constant(source.input[1])
            if given is None:
                return None
            clip, scale, offset = before, given, 0
        ends = [] if clip is None else [self._graph.constant(name) for name in clip.input[1:3]]
        codes = [round(float(end) / float(scale)) - offset for end in ends if end is not None]
        return (codes[0], codes[1]) if len(codes) == 2 else None

    def _image_step(self, source: Any) -> int | None:
        """Return the number of steps of a gated quantizer, by which each image's width is divided, or None."""
        scaled = self._before(source.input[0], ("Min", "Max", "Round"))
        step = None if scaled is None or scaled.op_type != "Div" else self._graph.producer(scaled.input[1])
        steps = None if step is None or step.op_type != "Div" else self._graph.constant(step.input[1])
        return None if steps is None else int(steps)

    def _needed(self, low: int, high: int) -> int:
        """Return the least bits whose grid has all codes from ``low`` to ``high``."""
        if self.metadata.get("method") == "pams":
            return 1 + math.ceil(math.log2(max(abs(low), abs(high), 1) + 1))
        return math.ceil(math.log2(high - low + 1))

    def _named(self, needed: int, key: str) -> int:
        """Return the least bits that suffice, among those that the file names under ``key``."""
        named = [int(bits) for bits in self.metadata.get(key, "").split(",") if bits.isdecimal()]
        fitting = [bits for bits in named if needed <= bits <= MAX_BITS]
        return min(fitting) if fitting else max(MIN_BITS, needed)
