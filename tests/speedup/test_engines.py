"""Each engine against the integer simulator on photos, and NNI's speedup contract."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from srq_nni.errors import ExportError
from srq_nni.quantization.layers import attach_quantizer
from srq_nni.quantization.methods import METHODS
from srq_nni.speedup import ModelSpeedupONNXRuntime, ModelSpeedupOpenVINO, export_onnx, integer_simulator
from srq_nni.speedup.byte_products import has_vnni
from srq_nni.speedup.engine import EngineSpeedup
from tests.speedup.architectures import quantized
from tests.speedup.networks import calibrated, difference, edsr, mixed, photo, psnr, quantize, run_with_ties
from tests.sr_data import REPOSITORY

ROUNDING = 2e-3  # grey levels that float32 rounding of the unquantized layers may cost
ENGINES: dict[str, type[EngineSpeedup]] = {"openvino": ModelSpeedupOpenVINO, "onnxruntime": ModelSpeedupONNXRuntime}
every_engine = pytest.mark.parametrize("engine", list(ENGINES))
logger = logging.getLogger(__name__)


def compressed(engine: str, network: Any, folder: Path) -> EngineSpeedup:
    pytest.importorskip("onnx")
    pytest.importorskip(engine)
    speedup = ENGINES[engine](network, (1, 3, 32, 32), onnx_path=folder / "model.onnx", threads=1)
    speedup.compress()
    return speedup


def inexact_here(engine: str, speedup: EngineSpeedup) -> bool:
    """Whether products of bytes are rounded on this CPU; ONNX Runtime has an option against it."""
    assert speedup.report is not None
    return engine == "openvino" and has_vnni() is not True and bool(speedup.report.inexact_without_vnni)


def margin(engine: str, bits: int) -> float:
    """Return how far from a tie float32 rounding can move a code: 2^-24 x largest code, times the length of a sum."""
    return 2.0**bits * (4e-6 if engine == "onnxruntime" else 1e-6)


@every_engine
@pytest.mark.parametrize("method", ["pams", "ddtb"])
@pytest.mark.parametrize("bits", [7, 4, 3, 2])
def test_equal_to_the_simulator_away_from_ties(engine: str, method: str, bits: int, tmp_path: Path) -> None:
    network = edsr(method, bits)
    speedup = compressed(engine, network, tmp_path)
    if inexact_here(engine, speedup):
        pytest.skip("without VNNI oneDNN halves the weights of this network; see test_byte_products.py")
    x = torch.cat([photo(40), photo(40, 200, 200)])
    expected, tie = run_with_ties(integer_simulator(network, engine=engine), x, margin(engine, bits))
    output, _ = speedup.inference(x)
    assert tie.float().mean() < 0.7
    assert difference(output, expected)[~tie.expand_as(output)].max() < ROUNDING


@every_engine
def test_pams_8_bits_equal_to_the_simulator_away_from_ties(engine: str, tmp_path: Path) -> None:
    network = edsr("pams", 8)
    speedup = compressed(engine, network, tmp_path)
    if inexact_here(engine, speedup):
        pytest.skip("without VNNI oneDNN halves the weights of this network; see test_byte_products.py")
    expected, tie = run_with_ties(integer_simulator(network, engine=engine), photo(96), margin(engine, 8))
    output, _ = speedup.inference(photo(96))
    assert tie.float().mean() < 0.95
    assert difference(output, expected)[~tie.expand_as(output)].max() < ROUNDING


@every_engine
@pytest.mark.parametrize(
    ("method", "bits"), [("pams", 8), ("pams", 4), ("pams", 2), ("ddtb", 7), ("ddtb", 4), ("ddtb", 2)]
)
def test_trained_weights_on_a_photo(engine: str, method: str, bits: int, tmp_path: Path, record_property: Any) -> None:
    network = edsr(method, bits, trained=True)
    speedup = compressed(engine, network, tmp_path)
    expected, tie = run_with_ties(integer_simulator(network, engine=engine), photo(64), margin(engine, bits) / 4)
    output, seconds = speedup.inference(photo(64))
    error = difference(output, expected)
    record_property("psnr", psnr(output, expected))
    record_property("largest_difference", float(error.max()))
    logger.info("%s %s %d: %.1f dB, max %.2g", engine, method, bits, psnr(output, expected), float(error.max()))
    assert seconds > 0
    if inexact_here(engine, speedup):
        assert psnr(output, expected) > 40
        return
    outside = error[~tie.expand_as(error)]
    assert outside.numel() == 0 or outside.max() < ROUNDING
    if bits == 8:
        assert psnr(output, expected) > 60


def test_openvino_runs_every_body_convolution_in_int8(tmp_path: Path) -> None:
    for bits in (8, 4):
        report = compressed("openvino", edsr("pams", bits, blocks=3, features=16), tmp_path).precision_report()
        assert (report.integer_convolutions, len(report.kernels)) == (6, 10)
        assert f"openvino: {6} of 10 convolutions in integers" in str(report)


@pytest.mark.parametrize(("method", "in_integers"), [("pams", True), ("ddtb", False)])
def test_a_relu_carries_integers_unless_they_have_a_zero_point(method: str, in_integers: bool, tmp_path: Path) -> None:
    """A weight alone is quantized behind it; DDTB's 8 bits have a zero point, with which OpenVINO's ReLU is float."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
    network.append(nn.ReLU()).append(nn.Conv2d(16, 3, 3, padding=1))
    quantize(network, "2", method, 8)
    attach_quantizer(network, "2", "_output_0", METHODS[method].activation(8))
    attach_quantizer(network, "4", "weight", METHODS[method].weight(6))
    speedup = compressed("openvino", calibrated(network, photo(64)), tmp_path)
    assert speedup.report is not None
    layers = {layer.name: (layer.runs_in_integers, layer.reason) for layer in speedup.report.layers}
    reason = "a ReLU stands between its quantizer, which has a zero point, and it"
    assert layers["4"] == ((True, "") if in_integers else (False, reason))
    assert speedup.precision_report().integer_convolutions == 1 + in_integers


def test_onnxruntime_report_hides_nothing(tmp_path: Path) -> None:
    report = compressed("onnxruntime", edsr("pams", 4), tmp_path).precision_report()
    assert (report.integer_convolutions, len(report.kernels)) == (1, 6)
    network = quantized("SRResNet", "pams", 4, "paper")
    report = compressed("onnxruntime", network, tmp_path).precision_report()
    assert (report.integer_convolutions, len(report.kernels)) == (0, 8)
    assert report.notes == (
        "ONNX Runtime runs a convolution in integers only if its output is quantized too; this file has float "
        "convolutions over dequantized integers. Use wiring 'deploy', or OpenVINO for INT8 speed.",
    )


@every_engine
@pytest.mark.parametrize("bits", [6, 4, 2])
def test_batch_norm_groups_padding_and_reuse(engine: str, bits: int, tmp_path: Path) -> None:
    network = mixed(bits)
    output, _ = compressed(engine, network, tmp_path).inference(photo(48))
    with torch.no_grad():
        expected = integer_simulator(network, engine=engine)(photo(48))
    error = difference(output, expected)
    assert (error < ROUNDING).float().mean() > 0.9
    assert psnr(output, expected) > 50


@every_engine
@pytest.mark.parametrize("bits", [4, 6])
def test_codes_are_right_up_to_a_millionth_of_a_step_from_a_tie(engine: str, bits: int, tmp_path: Path) -> None:
    """OpenVINO's own QuantizeLinear errs up to 2e-5 steps from a tie; Div and Round before it do not."""
    torch.manual_seed(0)
    network: Any = nn.Sequential(nn.Conv2d(3, 3, 1))
    quantize(network, "0", "pams", bits)
    largest = 2 ** (bits - 1) - 1
    network[0].input_quantizer.alpha.data.fill_(3.21 * largest)
    ties = torch.randint(-largest, largest, (1, 3, 64, 64)).double() + 0.5
    away = torch.empty(ties.shape, dtype=torch.float64).uniform_(2e-7, 1e-6) * torch.randn(ties.shape).sign() * largest
    x = ((ties + away) * 3.21).float()
    with torch.no_grad():
        expected = integer_simulator(network.eval(), engine=engine)(x)
    assert torch.allclose(compressed(engine, network, tmp_path).inference(x)[0], expected, rtol=0, atol=1e-4)


@every_engine
def test_integer_bias_equals_its_simulator(engine: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip(engine)
    network = edsr("pams", 4)
    export_onnx(network, tmp_path / "model.onnx", engine, integer_bias=True)
    speedup = ENGINES[engine](tmp_path / "model.onnx", (1, 3, 32, 32), threads=1)
    speedup.compress()
    expected, tie = run_with_ties(integer_simulator(network, integer_bias=True), photo(40), margin(engine, 4))
    error = difference(speedup.inference(photo(40))[0], expected)
    assert error[~tie.expand_as(error)].max() < ROUNDING


@every_engine
def test_any_size_and_batch(engine: str, tmp_path: Path) -> None:
    network = edsr("pams", 3)
    speedup = compressed(engine, network, tmp_path)
    simulator = integer_simulator(network, engine=engine)
    for shape in ((2, 24, 40), (1, 33, 17), (3, 8, 8)):
        x = photo(64)[..., : shape[1], : shape[2]].repeat(shape[0], 1, 1, 1)
        expected, tie = run_with_ties(simulator, x, margin(engine, 3))
        output, _ = speedup.inference(x)
        assert output.shape == (shape[0], 3, 2 * shape[1], 2 * shape[2])
        error = difference(output, expected)[~tie.expand_as(output)]
        assert error.numel() == 0 or error.max() < ROUNDING


@every_engine
def test_speedup_contract(engine: str, tmp_path: Path) -> None:
    network = edsr("pams", 4)
    speedup = compressed(engine, network, tmp_path)
    assert speedup.report is not None and speedup.report.engine == engine
    first, seconds = speedup.inference(photo())
    assert isinstance(seconds, float) and first.dtype == torch.float32
    kept = first.clone()
    speedup.inference(photo(32, 200))
    assert torch.equal(first, kept)
    speedup.export_quantized_model(tmp_path / "copy.onnx")
    assert (tmp_path / "copy.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()
    other = ENGINES[engine](network, (1, 3, 32, 32), config={"ignored": {}}, threads=1)
    other.load_quantized_model(tmp_path / "copy.onnx")
    assert torch.equal(other.inference(photo())[0], kept)
    from_file = ENGINES[engine](str(tmp_path / "copy.onnx"), (1, 3, 32, 32), threads=1)
    from_file.compress()
    assert torch.equal(from_file.inference(photo().double())[0], kept)
    (tmp_path / "copy.onnx").rename(tmp_path / "COPY.ONNX")
    in_capitals = ENGINES[engine](tmp_path / "COPY.ONNX", (1, 3, 32, 32), threads=1)
    in_capitals.compress()
    assert torch.equal(in_capitals.inference(photo())[0], kept)


@every_engine
def test_errors(engine: str, tmp_path: Path) -> None:
    network = edsr("pams", 4)
    cls = ENGINES[engine]
    with pytest.raises(ExportError, match=r"^input_shape: \(3, 32, 32\) is not allowed; give \(batch, channels"):
        cls(network, (3, 32, 32))  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=r"^threads: 0 is not allowed; give a number from 1, or None"):
        cls(network, (1, 3, 32, 32), threads=0)
    fresh = cls(network, (1, 3, 32, 32))
    for use in (lambda: fresh.inference(photo()), fresh.precision_report, lambda: fresh.export_quantized_model("x")):
        with pytest.raises(ExportError) as error:
            use()
        assert str(error.value) == "there is no engine yet; call compress() or load_quantized_model(path) first"
    speedup = compressed(engine, network, tmp_path)
    with pytest.raises(ExportError) as error:
        speedup.inference(torch.zeros(3, 8, 8))
    assert str(error.value) == (
        "an input of shape (3, 8, 8) and dtype torch.float32 is not allowed; give a float tensor (N, 3, H, W)"
    )
    with pytest.raises(ExportError, match=r"dtype torch\.uint8 is not allowed"):
        speedup.inference(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ExportError, match="cannot be read: No such file or directory; give an ONNX file"):
        speedup.load_quantized_model(tmp_path / "missing.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(ExportError, match=r"broken\.onnx' is not an ONNX file, or damaged; write it"):
        speedup.load_quantized_model(tmp_path / "broken.onnx")
    assert speedup.inference(photo())[0].shape == (1, 3, 64, 64)


@every_engine
def test_missing_engine_names_the_extra(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without_engine(name: str, *args: Any) -> Any:
        if name == engine:
            raise ImportError(f"No module named '{engine}'")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without_engine)
    with pytest.raises(ExportError) as error:
        ENGINES[engine](edsr("pams", 4), (1, 3, 32, 32), onnx_path=tmp_path / "model.onnx").compress()
    assert str(error.value) == (
        f"the package '{engine}' cannot be imported (No module named '{engine}'); "
        f'install it with: pip install "srq-nni[{engine}]"'
    )
    assert not (tmp_path / "model.onnx").exists()


def test_a_signal_is_heard_after_two_openvino_engines_are_freed(tmp_path: Path) -> None:
    """With a core each, the second to be freed leaves a signal stack that is gone, and the signal kills the process."""
    compressed("openvino", edsr("pams", 4), tmp_path)
    script = f"""
import os, signal
from srq_nni import ModelSpeedupOpenVINO
signal.signal(signal.SIGUSR1, lambda *_: print("heard", flush=True))
engines = [ModelSpeedupOpenVINO({str(tmp_path / "model.onnx")!r}, (1, 3, 32, 32), threads=1) for _ in range(2)]
for engine in engines:
    engine.compress()
while engines:
    del engine, engines[0]
    engine = None
os.kill(os.getpid(), signal.SIGUSR1)
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert (run.returncode, run.stdout) == (0, "heard\n"), run.stderr
