"""export_onnx: the report, the file, and what happens when it fails."""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from srq_nni.errors import ExportError, WriteError
from srq_nni.quantization.layers import set_mode
from srq_nni.speedup import export, export_float_onnx, export_onnx
from srq_nni.speedup.certificate import Certificate, CertificateRow
from srq_nni.speedup.export import LayerReport
from srq_nni.speedup.table import text_table
from tests.speedup.networks import edsr, mixed

onnx = pytest.importorskip("onnx")


def test_report(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    report = export_onnx(edsr("pams", 4), path)
    size = path.stat().st_size
    first, second = (f"{row.bound:,}" for row in report.certificate.rows)
    assert 0 < report.certificate.rows[0].bound <= 7 * 7 * 9 * 8, "codes of 4 bits reach 7"
    assert (report.path, report.engine, report.file_bytes) == (path, "openvino", size)
    assert str(report) == (
        f"{path} for openvino, {size / 1e6:.2f} MB\n"
        "layer         activation  weight  largest sum  in float32  runs in  because\n"
        f"body.0.conv1  4           4       {first:<11}  exact       int8\n"
        f"body.0.conv2  4           4       {second:<11}  exact       int8\n"
        "2 of 2 quantized convolutions in integers, accumulators exact in int32; "
        f"coverage {report.certificate.coverage:.1%}"
    )


def test_report_says_which_sums_float32_does_not_hold(tmp_path: Path) -> None:
    report = export_onnx(edsr("pams", 4), tmp_path / "model.onnx")
    rows = (CertificateRow("a", 8, 8, 2**24, 1), CertificateRow("b", None, 8, 0, 1), CertificateRow("c", 8, 8, 9, 1))
    layers = tuple(LayerReport(row.name, row.activation_bits, row.weight_bits, True, "") for row in rows)
    report = replace(report, layers=layers, certificate=Certificate(rows, 3, (8, 8)))
    assert str(report).splitlines()[1:5] == [
        "layer  activation  weight  largest sum  in float32  runs in  because",
        "a      8           8       16,777,216   NOT EXACT   int8",
        "b      float       8       -            -           int8",
        "c      8           8       9            exact       int8",
    ]


def test_report_says_why_not(tmp_path: Path) -> None:
    reasons = {row.name: row.reason for row in export_onnx(mixed(4), tmp_path / "model.onnx").layers}
    assert reasons == {
        "normed": "",
        "twice": "",
        "left": "",
        "right": "",
        "weight_only": "its input is not quantized",
        "input_only": "its weight is not quantized",
    }
    report = export_onnx(edsr("pams", 4), tmp_path / "model.onnx", "onnxruntime")
    assert [row.reason for row in report.layers] == [
        "",
        "onnxruntime runs a convolution in integers only if its output is quantized, and this one's goes to Add",
    ]
    assert "1 of 2 quantized convolutions in integers" in str(report)
    report = export_onnx(edsr("pams", 4), tmp_path / "model.onnx", "tensorrt")
    assert str(report).endswith("Written by NVIDIA's published rules; no TensorRT engine was built from it yet.")


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_file_is_smaller_than_float(engine: str, tmp_path: Path) -> None:
    network = edsr("pams", 4, blocks=4, features=32)
    report = export_onnx(network, tmp_path / "model.onnx", engine)
    float_bytes = sum(p.numel() * 4 for n, p in network.named_parameters() if n.endswith(("weight", "bias")))
    body = sum(p.numel() for n, p in network.named_parameters() if n.startswith("body") and n.endswith("weight"))
    assert report.file_bytes < float_bytes - 3 * body + 25_000


def test_export_is_deterministic_and_leaves_the_model_alone(tmp_path: Path) -> None:
    network = edsr("ddtb", 4).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    random = torch.get_rng_state()
    for name in ("a.onnx", "b.onnx"):
        export_onnx(network, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert network.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(("method", "bits", "engine"), [("ddtb", 8, "tensorrt"), ("pams", 4, "onnx")])
def test_failing_export_leaves_an_existing_file_untouched(method: str, bits: int, engine: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ExportError):
        export_onnx(edsr(method, bits), path, engine)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_failing_write_leaves_an_existing_file_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.os, "fsync", full)
    with pytest.raises(WriteError) as error:
        export_onnx(edsr("pams", 4), path)
    assert str(error.value) == (
        f"'{path}' cannot be written: No space left on device, and the old file is unchanged; free space on that disk"
    )
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_bad_paths_are_refused(tmp_path: Path) -> None:
    network = edsr("pams", 4)
    with pytest.raises(WriteError) as error:
        export_onnx(network, tmp_path)
    assert str(error.value) == (
        f"'{tmp_path}' is a folder; give the name of a file in it, such as '{tmp_path / 'model.onnx'}'"
    )
    with pytest.raises(WriteError) as error:
        export_onnx(network, tmp_path / "no" / "model.onnx")
    assert str(error.value) == (
        f"the folder '{tmp_path / 'no'}' of '{tmp_path / 'no' / 'model.onnx'}' does not exist; create it first"
    )


def test_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without_onnx(name: str, *args: Any) -> Any:
        if name == "onnx":
            raise ImportError("No module named 'onnx'")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without_onnx)
    with pytest.raises(ExportError) as error:
        export_onnx(edsr("pams", 4), tmp_path / "model.onnx")
    assert str(error.value) == (
        "the package 'onnx' cannot be imported (No module named 'onnx'); install it with: pip install \"srq-nni[onnx]\""
    )


def test_checkpoint_path_is_loaded_and_its_wiring_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from srq_nni import checkpoint

    network = edsr("pams", 4)
    setattr(network, checkpoint.BLOCKS, ({}, {"wiring": "paper"}))
    monkeypatch.setattr(checkpoint, "load", lambda path: network)
    export_onnx(tmp_path / "net.pth", tmp_path / "model.onnx")
    entries = {item.key: item.value for item in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert entries["wiring"] == "paper" and entries["method"] == "pams"


def test_text_table() -> None:
    assert text_table(("layer", "bits"), [("body.0", "4"), ("a", "")]) == "layer   bits\nbody.0  4\na"


def test_float_export_is_the_network_without_quantizers(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnxruntime'")
    model = edsr("pams", 4)
    path = export_float_onnx(model, tmp_path / "float.onnx")
    image = torch.rand(1, 3, 20, 24)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    output = torch.from_numpy(session.run(None, {"input": image.numpy()})[0])
    set_mode(model, "float")
    with torch.no_grad():
        assert torch.allclose(output, model.eval()(image), atol=1e-4)
