"""Q/DQ graphs as other tools write them, right and wrong ones, for the linter."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 16
OPSET = 21  # the first with 4-bit integers
INT4 = "int4"


class GraphWriter:
    """Writes a chain of convolutions; every method takes and returns names of tensors."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.random = np.random.default_rng(0)

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def grid(self, name: str, scale: Any, zero: int, dtype: Any) -> list[str]:
        """Write scale and zero point of the shape of ``scale``."""
        scale = np.asarray(scale, np.float32)
        names = [self.constant(f"{name}_scale", scale)]
        if dtype == INT4:
            values = np.full(scale.size, zero).tolist()
            self.constants.append(helper.make_tensor(f"{name}_zero", TensorProto.INT4, scale.shape, values))
            return [*names, f"{name}_zero"]
        return [*names, self.constant(f"{name}_zero", np.full(scale.shape, zero, dtype))]

    def quantize(
        self,
        source: str,
        name: str,
        *,
        scale: Any = 0.02,
        zero: int = 0,
        dtype: Any = np.int8,
        between: str = "",
        computed_scale: bool = False,
    ) -> str:
        """Write Q and DQ; ``between`` puts an integer Clip or a DepthToSpace between the two."""
        axis = {"axis": 1} if np.ndim(scale) else {}
        grid = self.grid(name, scale, zero, dtype)
        if computed_scale:
            total = self.node("ReduceMean", [source], f"{name}_mean", keepdims=0)
            zeroed = self.node("Mul", [total, self.constant(f"{name}_none", np.float32(0))], f"{name}_zeroed")
            grid[0] = self.node("Add", [zeroed, grid[0]], f"{name}_computed")
        codes = self.node("QuantizeLinear", [source, *grid], f"{name}_q", **axis)
        if between == "Clip":
            limits = [self.constant(f"{name}_{end}", np.array(at, dtype)) for end, at in (("min", 1), ("max", 7))]
            codes = self.node("Clip", [codes, *limits], f"{name}_clip")
        if between == "DepthToSpace":
            codes = self.node("DepthToSpace", [codes], f"{name}_shuffled", blocksize=2)
        return self.node("DequantizeLinear", [codes, *grid], f"{name}_dq", **axis)

    def weight(self, name: str, shape: tuple[int, ...], kind: str) -> str:
        """Write a weight: float, int8, per_channel, uint8, zero_point, int4, or qdq (float behind Q and DQ)."""
        codes = self.random.integers(-7, 8, shape)
        if kind in ("float", "qdq"):
            value = self.constant(f"{name}_value", (codes * 0.01).astype(np.float32))
            return self.quantize(value, name, scale=0.01) if kind == "qdq" else value
        if kind == "int4":
            self.constants.append(helper.make_tensor(f"{name}_q", TensorProto.INT4, shape, codes.flatten().tolist()))
            return self.node("DequantizeLinear", [f"{name}_q", *self.grid(name, 0.01, 0, INT4)], f"{name}_dq")
        zero = {"uint8": 128, "zero_point": 3}.get(kind, 0)
        dtype = np.uint8 if kind == "uint8" else np.int8
        scale = np.full(shape[0], 0.01) if kind == "per_channel" else 0.01
        stored = self.constant(f"{name}_q", (codes + zero).astype(dtype))
        axis = {"axis": 0} if kind == "per_channel" else {}
        return self.node("DequantizeLinear", [stored, *self.grid(name, scale, zero, dtype)], f"{name}_dq", **axis)

    def conv(
        self, source: str, name: str, *, into: int = CHANNELS, weight: str = "int8", bias: str = "", **attributes: Any
    ) -> str:
        """Write a 3x3 convolution; ``bias`` is float or int32."""
        groups = attributes.get("group", 1)
        inputs = [source, self.weight(f"{name}.weight", (into, CHANNELS // groups, 3, 3), weight)]
        if bias == "float":
            inputs.append(self.constant(f"{name}.bias", np.linspace(-0.1, 0.1, into, dtype=np.float32)))
        if bias == "int32":
            codes = self.constant(f"{name}.bias_q", np.arange(into, dtype=np.int32))
            scale = self.constant(f"{name}.bias_scale", np.float32(0.02 * 0.01))
            inputs.append(self.node("DequantizeLinear", [codes, scale], f"{name}.bias_dq"))
        return self.node("Conv", inputs, name, pads=attributes.pop("pads", [1, 1, 1, 1]), **attributes)

    def model(self, output: str, *, opset: int = OPSET) -> Any:
        """Return the ``onnx.ModelProto`` from input ``x`` (N, 16, H, W) to ``output``."""
        shape = ["n", CHANNELS, "h", "w"]
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        taken = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", "c", "out_h", "out_w"])
        graph = helper.make_graph(self.nodes, "handmade", [given], [taken], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def block(
    *,
    activation: dict[str, Any] | None = None,
    output: dict[str, Any] | None = None,
    relu: bool = False,
    clip: bool = False,
    pad: bool = False,
    add: bool = False,
    signed: bool = False,
    skip: str = "",
    returned: str = "",
    last: str = "float",
    **conv: Any,
) -> Any:
    """Return a model: Q, DQ and convolution ``first``, then whatever is asked for, then convolution ``last``.

    Args:
        activation: arguments of ``quantize`` before ``first``; None leaves it out.
        output: the same after it.
        relu, clip, add: what stands between ``first`` and the quantizer after it.
        skip: tensor that is added behind the quantizer after it.
        returned: tensor that is an output of the model, too.
        signed: ``first`` reads the input as it is, not after a ReLU.
        last: weight of ``last``.
        pad: a Pad between DequantizeLinear and ``first``.
        conv: arguments of ``GraphWriter.conv``.
    """
    write = GraphWriter()
    value = write.node("Identity" if signed else "Relu", ["x"], "source")
    if activation is not None:
        value = write.quantize(value, "first.input", **activation)
    if pad:
        value = write.node(
            "Pad", [value, write.constant("pads", np.array([0, 0, 1, 1] * 2, np.int64))], "padded", mode="reflect"
        )
        conv["pads"] = [0, 0, 0, 0]
    value = write.conv(value, "first", **conv)
    if relu:
        value = write.node("Relu", [value], "rectified")
    if clip:
        limits = [write.constant(f"limit_{name}", np.float32(at)) for name, at in (("min", -0.1), ("max", 0.1))]
        value = write.node("Clip", [value, *limits], "clipped")
    if add:
        value = write.node("Add", [value, "source"], "sum")
    if output is not None:
        value = write.quantize(value, "last.input", **output)
    if skip:
        value = write.node("Add", [value, skip], "skipped")
    value = write.conv(value, "last", into=4, weight=last)
    model = write.model(value)
    if returned:
        model.graph.output.append(helper.make_tensor_value_info(returned, TensorProto.FLOAT, ["n", "c", "p", "q"]))
    onnx.checker.check_model(model)
    return model
