"""Nodes between a quantizer and its convolution: what the linter says, and what the engines run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from srq_nni.speedup import lint_onnx

onnx = pytest.importorskip("onnx")

from tests.speedup.handmade import CHANNELS, GraphWriter  # noqa: E402
from tests.speedup.linted import ENGINES, INT8, UINT8, UINT8_ONLY, ran_in_integers, saved  # noqa: E402

ATTRIBUTES: dict[str, dict[str, Any]] = {
    "MaxPool": {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
    "AveragePool": {"kernel_shape": [2, 2], "strides": [2, 2]},
    "Transpose": {"perm": [0, 1, 3, 2]},
}
FLOAT = "its input is not quantized"
BEFORE_4_BITS = 17  # ONNX Runtime 1.31 refuses int8 codes behind a MaxPool from opset 21 on
CARRIED = [
    (["MaxPool"], "", ""),
    (["Transpose"], "", ""),
    (["MaxPool", "Transpose"], "", ""),
    (["AveragePool"], "", FLOAT),
    (["AveragePool", "MaxPool"], "", FLOAT),
    (["Relu", "MaxPool"], "a ReLU and a MaxPool of int8 stand before it", FLOAT),
]


@pytest.mark.parametrize("grid", [INT8, {"zero": 3}, {"dtype": np.uint8, "zero": 128}, UINT8])
@pytest.mark.parametrize(("kinds", "openvino", "onnxruntime"), CARRIED)
def test_nodes_that_carry_integers(
    kinds: list[str], openvino: str, onnxruntime: str, grid: dict[str, Any], tmp_path: Path
) -> None:
    write = GraphWriter()
    value = write.quantize("x", "first.input", **grid)
    for kind in kinds:
        value = write.node(kind, [value], kind.lower(), **ATTRIBUTES.get(kind, {}))
    value = write.quantize(write.conv(value, "first"), "output", **UINT8)
    path = saved(write.model(write.node("Tanh", [value], "result"), opset=BEFORE_4_BITS), tmp_path)
    if "Relu" in kinds and grid.get("zero"):
        openvino = "a ReLU stands between its quantizer, which has a zero point, and it"
    elif grid is UINT8:
        openvino = ""
    for engine, reason in (("openvino", openvino), ("onnxruntime", onnxruntime), ("tensorrt", FLOAT)):
        report = lint_onnx(path, engine)
        assert report.verdicts[0].reason == reason
        if engine in ENGINES:
            assert report.integer_convolutions == ran_in_integers(engine, path)


@pytest.mark.parametrize("grid", [INT8, {"dtype": np.uint8, "zero": 128}])
@pytest.mark.parametrize("second", ["same", "equal", "float"])
def test_a_concat_of_one_grid_carries_integers(grid: dict[str, Any], second: str, tmp_path: Path) -> None:
    write = GraphWriter()
    half = write.constant("half", np.full((CHANNELS // 2, CHANNELS, 1, 1), 0.1, np.float32))
    first = write.quantize(write.node("Conv", ["x", half], "left"), "left.output", **grid)
    other = first if second == "same" else write.node("Conv", ["x", half], "right")
    if second == "equal":
        other = write.quantize(other, "right.output", **grid)
    value = write.conv(write.node("Concat", [first, other], "joined", axis=1), "first")
    path = saved(write.model(write.node("Tanh", [write.quantize(value, "output", **UINT8)], "result")), tmp_path)
    for engine, reason in (("openvino", FLOAT if second == "float" else ""), ("onnxruntime", FLOAT)):
        report = lint_onnx(path, engine)
        assert report.verdicts[-1].reason == reason
        assert report.integer_convolutions == ran_in_integers(engine, path)


@pytest.mark.parametrize("read_twice", ["first.input_dq", "maxpool"])
def test_int8_codes_that_are_read_twice_behind_a_carrier(read_twice: str, tmp_path: Path) -> None:
    write = GraphWriter()
    value = write.node("MaxPool", [write.quantize("x", "first.input")], "maxpool", **ATTRIBUTES["MaxPool"])
    value = write.node("Tanh", [write.quantize(write.conv(value, "first"), "output", **UINT8)], "tanh")
    result = write.node("Add", [value, write.node("Sigmoid", [read_twice], "side")], "result")
    path = saved(write.model(result, opset=BEFORE_4_BITS), tmp_path)
    report = lint_onnx(path, "onnxruntime")
    reason = f"its input is int8 and read 2 times, and {UINT8_ONLY}" if read_twice == "maxpool" else ""
    assert report.verdicts[0].reason == reason
    assert report.integer_convolutions == ran_in_integers("onnxruntime", path)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_a_shuffle_of_codes(dtype: Any, tmp_path: Path) -> None:
    write = GraphWriter()
    value = write.quantize(write.node("Relu", ["x"], "source"), "first.input", dtype=dtype, between="DepthToSpace")
    weight = write.weight("first.weight", (CHANNELS, CHANNELS // 4, 3, 3), "int8")
    value = write.node("Conv", [value, weight], "first", pads=[1, 1, 1, 1])
    path = saved(write.model(write.node("Tanh", [write.quantize(value, "output", **UINT8)], "result")), tmp_path)
    refused = "a DepthToSpace of int8 stands before it, and onnxruntime takes one of uint8 only"
    for engine, reason in (("openvino", ""), ("onnxruntime", refused if dtype == np.int8 else "")):
        report = lint_onnx(path, engine)
        assert report.verdicts[0].reason == reason
        assert report.integer_convolutions == ran_in_integers(engine, path)
