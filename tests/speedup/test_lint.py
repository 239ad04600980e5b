"""What the linter foretells of files that other tools wrote, against what the engines then run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from srq_nni.errors import ExportError
from srq_nni.speedup import export_onnx, lint_onnx
from tests.speedup.architectures import quantized

onnx = pytest.importorskip("onnx")

from tests.speedup.handmade import CHANNELS, INT4, GraphWriter, block  # noqa: E402
from tests.speedup.linted import ENGINES, INT8, UINT8, UINT8_ONLY, ran_in_integers, saved  # noqa: E402

PER_CHANNEL = np.linspace(0.01, 0.03, CHANNELS)
OUTPUT = "onnxruntime runs a convolution in integers only if its output is quantized, and "
GOES_TO_CONV = f"{OUTPUT}this one's goes to Conv"
ONLY_INT8 = "its input is uint8, and tensorrt takes int8"

# name: (arguments of block, reason on OpenVINO, on ONNX Runtime, on TensorRT) of the convolution `first`.
CASES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "int8": ({"activation": INT8, "output": INT8}, "", "", ""),
    "int8 signed": ({"activation": INT8, "output": INT8, "signed": True}, "", "", ""),
    "int8, float output": ({"activation": INT8}, "", GOES_TO_CONV, ""),
    "uint8": ({"activation": UINT8, "output": UINT8, "relu": True}, "", "", ONLY_INT8),
    "zero point": (
        {"activation": {"zero": 3}, "output": {"zero": 3}, "signed": True},
        "",
        "",
        "the zero point of its input is 3, and tensorrt takes 0 only",
    ),
    "ReLU stays": (
        {"activation": INT8, "output": INT8, "relu": True},
        "",
        f"{OUTPUT}its ReLU stays, as int8 with zero point 0 has codes below 0",
        "",
    ),
    "ReLU taken over": ({"activation": INT8, "output": {"zero": -128}, "relu": True}, "", "", ""),
    "float Clip": (
        {"activation": UINT8, "output": UINT8, "clip": True},
        "",
        f"{OUTPUT}a float Clip stands between; limit the codes of uint8 instead",
        ONLY_INT8,
    ),
    "skip": ({"activation": INT8, "output": INT8, "add": True}, "", f"{OUTPUT}this one's goes to Add", ""),
    "float input": ({"output": UINT8}, *["its input is not quantized"] * 3),
    "float weight": (
        {"activation": INT8, "output": INT8, "weight": "float"},
        "its weight is not quantized",
        "",
        "its weight is not quantized",
    ),
    "uint8 weight": (
        {"activation": UINT8, "output": UINT8, "weight": "uint8"},
        "its weight is uint8, and openvino multiplies int8",
        "",
        ONLY_INT8,
    ),
    "weight with zero point": (
        {"activation": INT8, "weight": "zero_point"},
        "the zero point of its weight is 3, and openvino takes 0 only",
        GOES_TO_CONV,
        "the zero point of its weight is 3, and tensorrt takes 0 only",
    ),
    "int4 weight": (
        {"activation": UINT8, "output": UINT8, "weight": "int4"},
        "its weight is int4, and openvino multiplies int8",
        "its weight is int4, and onnxruntime multiplies int8 or uint8",
        ONLY_INT8,
    ),
    "int4 input": (
        {"activation": {"dtype": INT4}, "output": UINT8},
        "",
        "its input is int4, and onnxruntime takes int8 or uint8",
        "its input is int4, and tensorrt takes int8",
    ),
    "uint16 input": (
        {"activation": {"dtype": np.uint16}, "output": UINT8},
        "its input is uint16, and openvino takes int8 or uint8 or int4 or uint4",
        "its input is uint16, and onnxruntime takes int8 or uint8",
        "its input is uint16, and tensorrt takes int8",
    ),
    "weight behind QuantizeLinear": ({"activation": INT8, "output": INT8, "weight": "qdq"}, "", "", ""),
    "scale per channel of the weight": ({"activation": INT8, "output": INT8, "weight": "per_channel"}, "", "", ""),
    "scale of one number": ({"activation": {"scale": [0.02]}, "output": INT8}, "", "", ""),
    "computed scale": (
        {"activation": {"computed_scale": True}, "output": INT8},
        "the scale of its input is computed for each image, and openvino takes constants",
        "",
        "the scale of its input is computed for each image, and tensorrt takes constants",
    ),
    "integer Clip": (
        {"activation": {"between": "Clip"}, "output": {"between": "Clip"}},
        "",
        "a Clip of int8 stands before it, and onnxruntime takes one of uint8 only",
        "a Clip of integers stands before it, and tensorrt takes none between Q and DQ",
    ),
    "integer Clip of uint8": (
        {"activation": {"between": "Clip", **UINT8}, "output": {"between": "Clip", **UINT8}},
        "",
        "",
        "a Clip of integers stands before it, and tensorrt takes none between Q and DQ",
    ),
    "integer Clip behind": (
        {"activation": INT8, "output": {"between": "Clip"}},
        "",
        "a Clip of int8 stands behind it, and onnxruntime takes one of uint8 only",
        "",
    ),
    "Pad": (
        {"activation": INT8, "output": INT8, "pad": True},
        "",
        "a Pad stands between its quantizer and it",
        "a Pad stands between its quantizer and it",
    ),
    "skip of int8 codes": (
        {"activation": INT8, "output": INT8, "skip": "first.input_dq"},
        "",
        f"its input is int8 and read 2 times, and {UINT8_ONLY}",
        "",
    ),
    "skip of int8 codes into uint8": (
        {"activation": INT8, "output": UINT8, "skip": "first.input_dq"},
        "",
        f"its input is int8 and read 2 times, and {UINT8_ONLY}",
        "",
    ),
    "skip of uint8 codes": (
        {"activation": UINT8, "output": UINT8, "skip": "first.input_dq"},
        "",
        "",
        ONLY_INT8,
    ),
    "skip of floats": ({"activation": INT8, "output": INT8, "skip": "source"}, "", "", ""),
    "int8 output read twice": (
        {"activation": UINT8, "output": INT8, "skip": "last.input_dq"},
        "",
        f"its output is int8 and read 2 times, and {UINT8_ONLY}",
        ONLY_INT8,
    ),
    "int8 output returned": (
        {"activation": UINT8, "output": INT8, "returned": "last.input_dq"},
        "",
        f"its output is int8 and read 2 times, and {UINT8_ONLY}",
        ONLY_INT8,
    ),
    "uint8 output read twice": (
        {"activation": UINT8, "output": UINT8, "skip": "last.input_dq", "returned": "last.input_dq"},
        "",
        "",
        ONLY_INT8,
    ),
    "float output returned": (
        {"activation": UINT8, "output": UINT8, "returned": "first"},
        "",
        f"{OUTPUT}this one's is an output of the network, too",
        ONLY_INT8,
    ),
    "float output returned before its ReLU": (
        {"activation": UINT8, "output": UINT8, "relu": True, "returned": "first"},
        "",
        f"{OUTPUT}this one's is an output of the network, too",
        ONLY_INT8,
    ),
    "float output returned after its ReLU": (
        {"activation": UINT8, "output": UINT8, "relu": True, "returned": "rectified"},
        "",
        f"{OUTPUT}this one's is an output of the network, too",
        ONLY_INT8,
    ),
    "float bias": ({"activation": INT8, "output": INT8, "bias": "float"}, "", "", ""),
    "int32 bias": (
        {"activation": INT8, "output": INT8, "bias": "int32"},
        "",
        "",
        "its bias is dequantized from int32, and tensorrt takes a float constant",
    ),
    "groups": ({"activation": INT8, "output": INT8, "group": 4}, "", "", ""),
    "depthwise": ({"activation": INT8, "output": INT8, "group": CHANNELS}, "", "", ""),
    "dilated": ({"activation": INT8, "output": INT8, "dilations": [2, 2], "pads": [2, 2, 2, 2]}, "", "", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_every_reason_and_what_the_engines_run(case: str, tmp_path: Path) -> None:
    arguments, *reasons = CASES[case]
    path = saved(block(**arguments), tmp_path)
    for engine, reason in zip((*ENGINES, "tensorrt"), reasons, strict=True):
        report = lint_onnx(path, engine)
        first, last = report.verdicts
        assert (first.node, first.reason, last.node) == ("first", reason, "last")
        assert last.reason
        if engine in ENGINES:
            assert report.integer_convolutions == ran_in_integers(engine, path)


@pytest.mark.parametrize("second", ["int8", "uint8", "zero_point"])
@pytest.mark.parametrize("output", [INT8, {"zero": -128}, {"scale": PER_CHANNEL}, {"dtype": np.uint8, "zero": 7}])
def test_two_quantized_convolutions(second: str, output: dict[str, Any], tmp_path: Path) -> None:
    path = saved(block(activation=INT8, output=output, relu=True, last=second), tmp_path)
    report = lint_onnx(path, "openvino")
    assert report.integer_convolutions == ran_in_integers("openvino", path)
    if "scale" in output:
        assert report.verdicts[1].reason == "its input has a scale for each channel, and openvino takes one for all"


@pytest.mark.parametrize("kind", ["QLinearConv", "ConvInteger", "ConvTranspose"])
def test_other_kinds_of_convolutions(kind: str, tmp_path: Path) -> None:
    write = GraphWriter()
    grids = [write.grid(name, scale, 0, dtype) for name, scale, dtype in (("x", 0.02, np.uint8), ("w", 0.01, np.int8))]
    codes = write.node("QuantizeLinear", ["x", *grids[0]], "codes")
    weight = write.constant("weight", write.random.integers(-7, 8, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8))
    pads = [1, 1, 1, 1]
    if kind == "QLinearConv":
        out = write.grid("y", 0.02, 0, np.uint8)
        found = write.node(kind, [codes, *grids[0], weight, *grids[1], *out], "conv", pads=pads)
        result = write.node("DequantizeLinear", [found, *out], "result")
    elif kind == "ConvInteger":
        result = write.node("Cast", [write.node(kind, [codes, weight], "conv", pads=pads)], "result", to=1)
    else:
        operands = [
            write.node("DequantizeLinear", [codes, *grids[0]], "value"),
            write.node("DequantizeLinear", [weight, *grids[1]], "weight_value"),
        ]
        result = write.node(kind, operands, "conv", pads=pads)
    path = saved(write.model(result), tmp_path)
    reasons = {
        "QLinearConv": ("", "", "it is a QLinearConv, and tensorrt does not read it"),
        "ConvInteger": (
            "it is a ConvInteger, and openvino computes it in floating point",
            "",
            "it is a ConvInteger, and tensorrt does not read it",
        ),
        "ConvTranspose": ("", "onnxruntime has no integer kernel for ConvTranspose", ONLY_INT8),
    }[kind]
    for engine, reason in zip((*ENGINES, "tensorrt"), reasons, strict=True):
        report = lint_onnx(path, engine)
        assert [verdict.reason for verdict in report.verdicts] == [reason]
        if engine in ENGINES and kind != "ConvTranspose":  # the reports of the engines count no transposed ones
            assert report.integer_convolutions == ran_in_integers(engine, path)


@pytest.mark.parametrize("arch", ["EDSR", "SRResNet"])
@pytest.mark.parametrize("engine", ENGINES)
def test_files_of_our_own(arch: str, engine: str, tmp_path: Path) -> None:
    written = export_onnx(quantized(arch, "ddtb", 4, "deploy", gated=True), tmp_path / "model.onnx", engine)
    report = lint_onnx(written.path, engine)
    promised = {layer.name for layer in written.layers if layer.runs_in_integers}
    assert {verdict.layer for verdict in report.verdicts if verdict.runs_in_integers} == promised
    pytest.importorskip(engine)
    speedup = ENGINES[engine](written.path, (1, 3, 16, 16), threads=1)
    speedup.compress()
    assert report.integer_convolutions == speedup.precision_report().integer_convolutions == len(promised)


def test_notes_for_tensorrt(tmp_path: Path) -> None:
    report = lint_onnx(saved(block(activation=INT8, output=INT8), tmp_path), "tensorrt")
    assert report.verdicts[0].note == (
        "its weight is an int8 constant; the parser documents int8 behind a QuantizeLinear only"
    )
    assert report.notes == (
        "Written by NVIDIA's published rules; no TensorRT engine was built from it yet.",
        "Its opset is 21; the oldest supported tensorrt reads up to 17.",
    )
    written = export_onnx(quantized("EDSR", "pams", 4, "deploy"), tmp_path / "deploy.onnx", "tensorrt")
    notes = {verdict.layer: verdict.note for verdict in lint_onnx(written.path, "tensorrt").verdicts if verdict.layer}
    assert {layer.name: layer.note for layer in written.layers} == notes, "export says it, too"
    assert notes == {
        **{f"body.{number}.conv1": "" for number in range(2)},
        **{
            f"body.{number}.conv2": "its output is quantized before an Add, which keeps TensorRT from fusing the two; "
            "train with wiring: tensorrt, which leaves that quantizer out"
            for number in range(2)
        },
    }
    assert str(written).count("keeps TensorRT from fusing the two") == 2
    written = export_onnx(quantized("EDSR", "pams", 4, "tensorrt"), tmp_path / "tensorrt.onnx", "tensorrt")
    assert all(layer.runs_in_integers and not layer.note for layer in written.layers)


def test_text(tmp_path: Path) -> None:
    report = lint_onnx(saved(block(activation=INT8, weight="float"), tmp_path), "onnxruntime")
    assert str(report).splitlines() == [
        "layer  runs in  because",
        f"first  float    {GOES_TO_CONV}",
        "last   float    its input is not quantized",
        "onnxruntime: 0 of 2 convolutions will run in integers",
    ]
    report = lint_onnx(saved(block(activation=INT8, output=INT8, weight="float"), tmp_path), "onnxruntime")
    assert report.verdicts[0].note == "its weight is float in the file; onnxruntime rounds it to int8 by itself"


def test_nodes_without_names_are_called_by_their_output(tmp_path: Path) -> None:
    model = block(activation=INT8)
    for node in model.graph.node:
        node.name = ""
    assert [verdict.node for verdict in lint_onnx(saved(model, tmp_path)).verdicts] == ["first", "last"]


def test_nodes_of_one_name_are_told_apart_by_their_output(tmp_path: Path) -> None:
    model = block(activation=INT8)
    for node in model.graph.node:
        node.name = "conv"
    verdicts = lint_onnx(saved(model, tmp_path)).verdicts
    assert [(verdict.node, verdict.output) for verdict in verdicts] == [("conv", "first"), ("conv", "last")]


def test_errors(tmp_path: Path) -> None:
    path = saved(block(activation=INT8), tmp_path)
    with pytest.raises(ExportError, match=r"^engine: 'tensort' is not known; .*; did you mean 'tensorrt'\?$"):
        lint_onnx(path, "tensort")
    with pytest.raises(ExportError, match=r"missing\.onnx' cannot be read: No such file or directory; give an ONNX"):
        lint_onnx(tmp_path / "missing.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(ExportError, match=r"broken\.onnx' is not an ONNX file, or damaged; write it again"):
        lint_onnx(tmp_path / "broken.onnx")
