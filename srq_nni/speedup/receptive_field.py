"""How far a pixel of the output can see, read from an ONNX graph: the overlap that tiles need to leave no seam.

Every tensor gets a resolution (pixels of it per pixel of the input) and a radius (in pixels of the input): its pixel at
``p`` depends on input pixels at most ``radius`` away from ``floor(p / resolution)``. Layers at a higher resolution add
fractions; the sum is rounded up at the end, which is exact since ``ceil((ceil(a/b) + c) / d) == ceil((a/b + c) / d)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from srq_nni.speedup.lazy import import_or_explain

ARITHMETIC = ("Abs", "Add", "Cast", "Div", "Exp", "Identity", "Max", "Min", "Mul", "Neg", "Pow", "Sqrt", "Sub", "Sum")
CODES = ("Ceil", "Clip", "DequantizeLinear", "Floor", "QuantizeLinear", "Round")
ACTIVATIONS = (
    "Elu",
    "Erf",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "PRelu",
    "Relu",
    "Selu",
    "Sigmoid",
    "Tanh",
)
POINTWISE = frozenset((*ARITHMETIC, *CODES, *ACTIVATIONS, "BatchNormalization"))
ACROSS_CHANNELS = frozenset(("Concat", "Slice", "Split"))  # if their axis is 1
REDUCTIONS = frozenset(("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"))
WHOLE_IMAGE = frozenset(("GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization", "LpNormalization"))
RESIZE_REACH = {"nearest": 1, "linear": 1, "cubic": 2}  # pixels before the resize


@dataclass(frozen=True)
class ReceptiveField:
    """What tiles of a network need.

    Attributes:
        scale: output pixels per input pixel; None if the graph does not say.
        radius: how far an output pixel sees, in input pixels; None if the network cannot be tiled.
        reason: why it cannot be tiled; empty if it can.
    """

    scale: int | None
    radius: int | None
    reason: str = ""


@dataclass(frozen=True)
class _Reach:
    resolution: Fraction = Fraction(1)
    radius: Fraction = Fraction(0)
    margin: tuple[int, int, int, int] = (0, 0, 0, 0)  # pixels that a Pad has added: top, left, bottom, right
    whole: str = ""  # which node knows more of the image than a tile does
    has_places: bool = True  # False for numbers about the whole image


class _NotTileableError(Exception):
    pass


def receptive_field(proto: Any) -> ReceptiveField:
    """Return scale and radius of a network with one input and one output, (N, C, H, W) each.

    Args:
        proto: ``onnx.ModelProto``.
    """
    output = proto.graph.output[0].name
    try:
        reach = _Walk(proto).reaches().get(output)
    except _NotTileableError as error:
        return ReceptiveField(None, None, str(error))
    if reach is None:
        return ReceptiveField(None, None, "its output does not depend on the image")
    if any(reach.margin) or reach.resolution.denominator != 1:
        return ReceptiveField(None, None, "its output is not a whole multiple of the input in size")
    scale = int(reach.resolution)
    if reach.whole:
        return ReceptiveField(scale, None, reach.whole)
    return ReceptiveField(scale, math.ceil(reach.radius))


class _Walk:
    def __init__(self, proto: Any) -> None:
        self.onnx = import_or_explain("onnx", "onnx")
        self.proto, self.graph = proto, proto.graph
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        for node in self.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        self.dequantized = {
            node.output[0]: node.input[0] for node in self.graph.node if node.op_type == "DequantizeLinear"
        }
        self.shapes: set[str] = set()  # what a Shape gives of tensors that depend on the image
        self.sizes: set[str] = set()  # values that come from height and width
        self.filled: set[str] = set()  # constants repeated to the size of the image

    def reaches(self) -> dict[str, _Reach]:
        """Return the reach of every tensor that depends on the pixels; sizes and constants have none."""
        image = next(entry.name for entry in self.graph.input if entry.name not in self.constants)
        found = {image: _Reach()}
        for node in self.graph.node:
            inputs = [found[name] for name in node.input if name in found]
            if not inputs or node.op_type in ("Shape", "Size"):
                self._note_sizes(node, bool(inputs))
                continue
            reach = _joined(node, inputs)
            if reach.has_places:
                reach = self._after(node, reach)
                joins = node.op_type in POINTWISE | ACROSS_CHANNELS
                if joins and not reach.whole and (self.shapes | self.sizes) & set(node.input):
                    reach = replace(reach, whole=f"{_name(node)} takes a number that depends on the size of the image")
            for name in node.output:
                found[name] = reach
        return found

    def _note_sizes(self, node: Any, of_image: bool) -> None:
        """Note what comes from the size of the image in the outputs of a node that no pixel goes through."""
        inputs, outputs, kind = set(node.input), set(node.output), node.op_type
        from_size, from_filled = bool(inputs & (self.shapes | self.sizes)), bool(inputs & self.filled)
        if kind in ("Shape", "Size"):
            if (of_image or from_size or from_filled) and not self._is_of_channels(node):
                (self.shapes if kind == "Shape" else self.sizes).update(outputs)
        elif not (from_size or from_filled) or (kind == "Gather" and self._is_of_channels(node)):
            return
        elif kind == "ConstantOfShape" or (kind == "Expand" and not {node.input[0]} & (self.shapes | self.sizes)):
            self.filled.update(outputs)
        else:
            (self.filled if kind in POINTWISE and not from_size else self.sizes).update(outputs)

    def _is_of_channels(self, node: Any) -> bool:
        """Whether a Shape, or a Gather from one, gives batch or channels alone, which tiles have, too."""
        if node.op_type == "Gather":
            index = self._constant(node.input[1]) if node.input[0] in self.shapes else None
            return index is not None and bool(np.isin(index, (0, 1, -4, -3)).all())
        return node.op_type == "Shape" and self._attributes(node).get("end", 4) in (1, 2, -3, -2)

    def _after(self, node: Any, reach: _Reach) -> _Reach:
        kind = node.op_type
        if kind in POINTWISE:
            self._refuse_maps(node)
            return reach
        if kind in ACROSS_CHANNELS:
            self._refuse_other_axes(node)
            return reach
        if kind in REDUCTIONS:
            return reach if self._axes(node) == [1] else replace(reach, whole=_whole(node), has_places=False)
        if kind in WHOLE_IMAGE:
            return replace(reach, whole=_whole(node), has_places=not kind.startswith("Global"))
        method = {
            "Conv": self._conv,
            "ConvTranspose": self._transposed,
            "DepthToSpace": self._shuffle,
            "Pad": self._pad,
            "Resize": self._resize,
        }.get(kind)
        if method is None:
            raise _NotTileableError(f"tiles are not known to keep the result of {_name(node)}")
        return method(node, reach)

    def _conv(self, node: Any, reach: _Reach) -> _Reach:
        attributes = self._attributes(node)
        if set(attributes.get("strides", [1])) != {1}:
            raise _NotTileableError(f"{_name(node)} has a stride")
        kernel = attributes.get("kernel_shape") or self._shape(node.input[1])[2:]
        dilations = attributes.get("dilations", [1, 1])
        span = [(size - 1) * dilation for size, dilation in zip(kernel, dilations, strict=True)]
        pads = self._pads(attributes, span)
        before = [reach.margin[axis] + pads[axis] for axis in (0, 1)]
        after = [reach.margin[axis + 2] + pads[axis + 2] for axis in (0, 1)]
        if any(first + last != whole for first, last, whole in zip(before, after, span, strict=True)):
            raise _NotTileableError(f"{_name(node)} changes the size of the image")
        return replace(reach, radius=reach.radius + max(before + after) / reach.resolution, margin=(0, 0, 0, 0))

    def _transposed(self, node: Any, reach: _Reach) -> _Reach:
        attributes = self._attributes(node)
        strides = set(attributes.get("strides", [1, 1]))
        kernel = attributes.get("kernel_shape") or self._shape(node.input[1])[2:]
        pads = attributes.get("pads", [0, 0, 0, 0])
        extra = attributes.get("output_padding", [0, 0])
        stride = strides.pop()
        grows = all(kernel[axis] + extra[axis] - pads[axis] - pads[axis + 2] == stride for axis in (0, 1))
        plain = set(attributes.get("dilations", [1])) == {1} and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
        if strides or not grows or not plain or any(reach.margin):
            raise _NotTileableError(f"{_name(node)} does not enlarge the image by a whole factor")
        resolution = reach.resolution * stride
        span = max(max(pads[axis], kernel[axis] - 1 - pads[axis]) for axis in (0, 1))
        return replace(reach, resolution=resolution, radius=reach.radius + span / resolution)

    def _shuffle(self, node: Any, reach: _Reach) -> _Reach:
        if any(reach.margin):
            raise _NotTileableError(f"{_name(node)} follows a Pad")
        return replace(reach, resolution=reach.resolution * int(self._attributes(node)["blocksize"]))

    def _pad(self, node: Any, reach: _Reach) -> _Reach:
        pads = self._constant(node.input[1]) if len(node.input) > 1 else None
        if pads is None or len(pads) != 8 or any(pads[[0, 1, 4, 5]]) or any(pads < 0):
            raise _NotTileableError(f"{_name(node)} pads by amounts that the file does not state")
        top, left, bottom, right = (int(old + new) for old, new in zip(reach.margin, pads[[2, 3, 6, 7]], strict=True))
        return replace(reach, margin=(top, left, bottom, right))

    def _resize(self, node: Any, reach: _Reach) -> _Reach:
        attributes = self._attributes(node)
        scales = self._constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        mode = attributes.get("mode", b"nearest").decode()
        centred = attributes.get("coordinate_transformation_mode", b"half_pixel") in (
            b"half_pixel",
            b"asymmetric",
            b"pytorch_half_pixel",
        )
        if scales is None or len(scales) != 4 or not centred or mode not in RESIZE_REACH or any(reach.margin):
            raise _NotTileableError(f"{_name(node)} resizes in a way that depends on the size of the image")
        factor = float(scales[2])
        if tuple(scales[:2]) != (1, 1) or scales[3] != factor or factor < 1 or factor != int(factor):
            raise _NotTileableError(f"{_name(node)} does not enlarge the image by a whole factor")
        radius = reach.radius + RESIZE_REACH[mode] / reach.resolution
        return replace(reach, resolution=reach.resolution * int(factor), radius=radius)

    def _pads(self, attributes: dict[str, Any], span: list[int]) -> list[int]:
        kind = attributes.get("auto_pad", b"NOTSET")
        if kind == b"SAME_UPPER":
            return [width // 2 for width in span] + [width - width // 2 for width in span]
        if kind == b"SAME_LOWER":
            return [width - width // 2 for width in span] + [width // 2 for width in span]
        return [0, 0, 0, 0] if kind == b"VALID" else list(attributes.get("pads", [0, 0, 0, 0]))

    def _axes(self, node: Any) -> list[int] | None:
        axes = self._attributes(node).get("axes")
        if axes is None and len(node.input) > 1:
            given = self._constant(node.input[1])
            axes = None if given is None else given.tolist()
        return None if axes is None else [axis % 4 for axis in axes]

    def _refuse_other_axes(self, node: Any) -> None:
        attributes = self._attributes(node)
        axes = [attributes.get("axis", 0)]
        if node.op_type == "Slice":
            given = self._constant(node.input[3]) if len(node.input) > 3 else None
            axes = [0, 1, 2, 3] if given is None else given.tolist()
        if any(axis % 4 != 1 for axis in axes):
            raise _NotTileableError(f"{_name(node)} works on rows or columns")

    def _refuse_maps(self, node: Any) -> None:
        """Constants with a height and a width belong to places of an image of one size."""
        for name in node.input:
            if name in self.constants and any(size != 1 for size in list(self.constants[name].dims)[-2:]):
                dims = list(self.constants[name].dims)
                if len(dims) == 4 or (len(dims) == 3 and any(size != 1 for size in dims[1:])):
                    raise _NotTileableError(f"{_name(node)} adds or multiplies a map of fixed size")

    def _shape(self, name: str) -> list[int]:
        name = self.dequantized.get(name, name)
        if name not in self.constants:
            raise _NotTileableError(f"the kernel '{name}' is no constant")
        return list(self.constants[name].dims)

    def _constant(self, name: str) -> np.ndarray | None:
        """Return the value of a tensor that depends on constants alone; exporters compute pads in many small steps."""
        needed = {name}
        nodes: list[Any] = []
        for node in reversed(self.graph.node):
            if needed & set(node.output):
                nodes.insert(0, node)
                needed.update(filter(None, node.input))
        if not needed <= {output for node in nodes for output in node.output} | set(self.constants):
            return None  # it comes from the image or from its size
        helper = self.onnx.helper
        weights = [tensor for tensor in self.graph.initializer if tensor.name in needed]
        nodes.append(helper.make_node("Identity", [name], ["value"]))
        graph = helper.make_graph(nodes, "constant", [], [helper.make_empty_tensor_value_info("value")], weights)
        model = helper.make_model(graph, opset_imports=self.proto.opset_import)
        return np.asarray(import_or_explain("onnx.reference", "onnx").ReferenceEvaluator(model).run(None, {})[0])

    def _attributes(self, node: Any) -> dict[str, Any]:
        return {attribute.name: self.onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _joined(node: Any, inputs: list[_Reach]) -> _Reach:
    """Return what a tensor computed place by place from ``inputs`` depends on."""
    whole = next((reach.whole for reach in inputs if reach.whole), "")
    local = [reach for reach in inputs if reach.has_places]
    if not local:
        return inputs[0]
    first = local[0]
    if any((reach.resolution, reach.margin) != (first.resolution, first.margin) for reach in local):
        raise _NotTileableError(f"{_name(node)} joins tensors of different sizes")
    return replace(first, radius=max(reach.radius for reach in local), whole=whole)


def _whole(node: Any) -> str:
    return f"{_name(node)} looks at the whole image"


def _name(node: Any) -> str:
    return f"{node.op_type} '{node.name}'" if node.name else node.op_type
