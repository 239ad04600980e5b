"""Products of bytes on CPUs without VNNI: what is exact on every CPU, and what is lost where it is not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from srq_nni.quantization.activation import ActivationQuantizer, DDTBActivation, PAMSActivation
from srq_nni.quantization.gate import Gate
from srq_nni.quantization.layers import attach_quantizer
from srq_nni.speedup import ModelSpeedupONNXRuntime, ModelSpeedupOpenVINO, explain_difference, integer_simulator
from srq_nni.speedup.byte_products import has_avx_vnni_alone, has_vnni, saturates, saturates_as_int8
from srq_nni.speedup.export import export_onnx
from srq_nni.speedup.machine import cpu_flags
from srq_nni.speedup.openvino import GEMM_NOTE
from srq_nni.speedup.simulator import IntegerConv2d
from tests.speedup.networks import edsr, photo, psnr, quantize

ENGINES = {"openvino": ModelSpeedupOpenVINO, "onnxruntime": ModelSpeedupONNXRuntime}
ENGINE_NOTES = {
    "openvino": "1 of them are exact only on CPUs with VNNI or AMX: older ones round or saturate products of wide "
    "codes. With {weight: 7, activation: 8} as their bits they are exact on all.",
    "onnxruntime": "1 of them saturate on CPUs without VNNI, unless the session has session.x64quantprecision=1, as "
    "ModelSpeedupONNXRuntime sets it, which takes time. With {weight: 7, activation: 8} as their bits none does.",
}
STEP = 2.0**-7
logger = logging.getLogger(__name__)


def activation(method: str, bits: int, signed: bool) -> ActivationQuantizer:
    """Return a quantizer with a power of two as its step, so that nothing but the products of bytes can be inexact."""
    if method == "pams":
        pams = PAMSActivation(bits)
        pams.alpha.data.fill_(STEP * (2 ** (bits - 1) - 1))
        return pams
    ddtb = DDTBActivation(bits)
    low = max(2 ** (bits - 1) - 3, 1) if signed else 0
    ddtb.lower.data.fill_(-STEP * low)
    ddtb.upper.data.fill_(STEP * (2**bits - 1 - low))
    return ddtb


def extreme(method: str, bits: int, weight_bits: int, signed: bool) -> nn.Module:
    """Return a network of one quantized convolution whose weights are mostly the largest and the smallest codes."""
    network = nn.Sequential(nn.Conv2d(3, 16, 1, bias=False), nn.Identity() if signed else nn.ReLU())
    network.append(nn.Conv2d(16, 16, 3, padding=1, bias=False))
    largest = 2 ** (weight_bits - 1) - 1
    weight = torch.randint(0, 4, (16, 16, 3, 3)).float().sub(1).clamp(-1, 1) * largest
    weight[::2] = torch.randint(-largest, largest + 1, (8, 16, 3, 3)).float()
    weight[0, 0, 0, 0] = largest
    network[2].weight.data.copy_(weight * STEP)
    quantize(network, "2", "pams", weight_bits, activation(method, bits, signed))
    output = PAMSActivation(8)
    output.alpha.data.fill_(127.0 * 2**-4)
    attach_quantizer(network, "2", "_output_0", output)
    return network.eval()


def images(network: Any, bits: int) -> torch.Tensor:
    """Return an input whose features are the largest, the smallest and random codes."""
    network[0].weight.data.copy_(torch.randint(-1, 2, (16, 3, 1, 1)))
    x = torch.randint(-(2**bits), 2**bits + 1, (2, 3, 24, 24)).float()
    x[..., :8] = 2.0**bits
    return x * STEP


def run(engine: str, network: nn.Module, x: torch.Tensor, folder: Path) -> tuple[Any, torch.Tensor]:
    pytest.importorskip("onnx")
    pytest.importorskip(engine)
    speedup = ENGINES[engine](network, (1, 3, 32, 32), onnx_path=folder / "model.onnx", threads=1)
    speedup.compress()
    return speedup, speedup.inference(x)[0]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("method", "signed"), [("pams", True), ("pams", False), ("ddtb", True), ("ddtb", False)])
@pytest.mark.parametrize(
    ("bits", "weight_bits"), [(7, 8), (7, 7), (7, 4), (6, 6), (4, 8), (4, 4), (2, 2), (8, 7), (8, 6)]
)
def test_exact_on_every_cpu(
    engine: str, method: str, signed: bool, bits: int, weight_bits: int, tmp_path: Path
) -> None:
    torch.manual_seed(bits)
    network = extreme(method, bits, weight_bits, signed)
    x = images(network, bits)
    speedup, output = run(engine, network, x, tmp_path)
    assert speedup.precision_report().integer_convolutions == 1
    assert speedup.report.inexact_without_vnni == ()
    with torch.no_grad():
        assert torch.equal(output, integer_simulator(network, engine=engine)(x))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("weight_bits", [8, 7])
def test_wide_weights_after_a_relu_are_exact_on_every_cpu(engine: str, weight_bits: int, tmp_path: Path) -> None:
    """PAMS stops at 127 there, and so does the byte."""
    network = extreme("pams", 8, weight_bits, signed=False)
    x = images(network, 8)
    speedup, output = run(engine, network, x, tmp_path)
    assert speedup.report.inexact_without_vnni == ()
    with torch.no_grad():
        assert torch.equal(output, integer_simulator(network, engine=engine)(x))


@pytest.mark.parametrize("engine", ENGINES)
def test_8_bits_on_signed_inputs_are_listed(engine: str, tmp_path: Path) -> None:
    """ONNX Runtime is exact all the same, by its option; a plain session and OpenVINO are so with VNNI alone."""
    network = extreme("pams", 8, 8, signed=True)
    x = images(network, 8)
    speedup, output = run(engine, network, x, tmp_path)
    assert speedup.report.inexact_without_vnni == ("2",)
    assert str(speedup.report).splitlines()[-1] == ENGINE_NOTES[engine]
    with torch.no_grad():
        expected = integer_simulator(network, engine=engine)(x)
    if engine == "onnxruntime":
        assert torch.equal(output, expected)
    if has_vnni() is None:
        pytest.skip("this is no x86 CPU with SSE 4.1")
    if engine == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
        output = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
    assert torch.equal(output, expected) is has_vnni()


@pytest.mark.parametrize(("vnni", "asked"), [(True, False), (False, True), (None, True)])
def test_onnxruntime_is_asked_to_avoid_what_saturates_on_this_cpu(
    vnni: bool | None, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With AVX-VNNI the option would cost the VNNI kernels."""
    monkeypatch.setattr("srq_nni.speedup.onnxruntime.has_vnni", lambda: vnni)
    network = extreme("pams", 8, 8, signed=True)
    speedup, _ = run("onnxruntime", network, images(network, 8), tmp_path)
    options = speedup._session.get_session_options()
    if asked:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError, match="x64quantprecision"):
            options.get_session_config_entry("session.x64quantprecision")


@pytest.mark.parametrize(("bits", "dtype"), [(7, "uint8"), (6, "int8")])
def test_1x1_convolutions_of_openvino_are_exact(bits: int, dtype: str, tmp_path: Path) -> None:
    """The 1x1 kernel for AVX2 adds 128 to int8 inputs, and 255 times twice 63, two times, leaves int16."""
    network: Any = extreme("pams", bits, bits, signed=True)
    network[2] = nn.Conv2d(16, 16, 1, bias=False)
    largest = 2 ** (bits - 1) - 1
    network[2].weight.data.copy_(torch.randint(0, 3, (16, 16, 1, 1)).sub(1) * largest * STEP)
    quantize(network, "2", "pams", bits, activation("pams", bits, signed=True))
    x = images(network, bits)
    speedup, output = run("openvino", network.eval(), x, tmp_path)
    assert speedup.report.inexact_without_vnni == () == speedup.precision_report().inexact
    with torch.no_grad():
        assert torch.equal(output, integer_simulator(network)(x))
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    stored = {constant.name: onnx.numpy_helper.to_array(constant) for constant in proto.graph.initializer}
    assert stored["2.input_zero_point"].dtype == dtype
    assert saturates_as_int8(2 * network[2].weight.numpy(force=True) / STEP, largest) is (bits == 7)


def test_a_wide_1x1_layer_that_must_stay_int8_is_named(tmp_path: Path) -> None:
    """A gate's codes are int8 with any number of bits; 7 may saturate on AVX2, and the export says so."""
    pytest.importorskip("onnx")
    network: Any = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1)).eval()
    quantize(network, "1", "ddtb", 7, activation("ddtb", 7, signed=True))
    network[1].input_quantizer.add_gate(Gate(8, statistics="per_sample").eval())
    network[1].input_quantizer.apply_gate(True)
    network[1].weight.data.copy_(torch.where(torch.rand(8, 8, 1, 1) > 0.5, 1.0, -1.0) * 63 * STEP)
    report = export_onnx(network, tmp_path / "model.onnx", "openvino")
    assert report.inexact_without_vnni == ("1",)


def test_openvino_multiplies_groups_without_avx_vnni(tmp_path: Path) -> None:
    """Groups of eight channels are exact; a GEMM kernel runs those of six, and saturates with AVX-VNNI alone.

    With AVX-VNNI-INT8 another kernel runs these, and with AVX-512's VNNI the GEMM kernel uses it.
    """
    if not has_vnni():
        pytest.skip("this CPU has no VNNI")
    lossy = has_avx_vnni_alone() and "avx_vnni_int8" not in cpu_flags()
    for channels, exact in ((16, True), (12, not lossy)):
        network = nn.Sequential(nn.Conv2d(3, channels, 1, bias=False), nn.Identity())
        network.append(nn.Conv2d(channels, channels, 3, padding=1, bias=False, groups=2))
        network[2].weight.data.copy_(torch.randint(-127, 128, network[2].weight.shape) * STEP)
        network[2].weight.data[:, :, 0, 0] = 127 * STEP
        network[0].weight.data.copy_(torch.randint(-1, 2, (channels, 3, 1, 1)))
        quantize(network, "2", "ddtb", 8, activation("ddtb", 8, signed=True))
        x = torch.randint(-256, 257, (1, 3, 24, 24)) * STEP
        speedup, output = run("openvino", network.eval(), x, tmp_path)
        with torch.no_grad():
            assert torch.equal(output, integer_simulator(network)(x)) is exact
        report = speedup.precision_report()
        assert report.inexact == (() if exact else ("2",))
        assert report.notes == (() if exact else (GEMM_NOTE.format(count=1),))
        assert explain_difference(network, x, threads=1).kind == ("exact" if exact else "lossy")


def test_a_layer_that_runs_twice_at_8_bits(tmp_path: Path) -> None:
    """ONNX Runtime refuses a shared weight with the option that keeps it from saturating."""
    network = nn.Sequential(*extreme("pams", 8, 8, signed=True))
    network.append(nn.Identity()).append(network[2])
    x = images(network, 8)
    speedup, output = run("onnxruntime", network, x, tmp_path)
    assert speedup.report.inexact_without_vnni == ("2",)
    assert speedup.precision_report().integer_convolutions == 2
    with torch.no_grad():
        assert torch.equal(output, integer_simulator(network, engine="onnxruntime")(x))


@pytest.mark.parametrize(("method", "bits"), [("pams", 7), ("pams", 4), ("ddtb", 7), ("ddtb", 2)])
def test_a_plain_session_of_onnxruntime_is_exact_up_to_7_bits(method: str, bits: int, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    network = edsr(method, bits, blocks=2, features=16)
    _, output = run("onnxruntime", network, photo(40), tmp_path)
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert torch.equal(torch.from_numpy(session.run(None, {"input": photo(40).numpy()})[0]), output)


def test_openvino_without_vnni_halves_wide_weights_and_says_so(tmp_path: Path) -> None:
    """The cause is proven: a simulator with halved, rounded and doubled weights explains the difference."""
    network = edsr("pams", 8, trained=True)
    speedup, output = run("openvino", network, photo(64), tmp_path)
    notes = speedup.precision_report().notes
    lossy = speedup.report.inexact_without_vnni
    assert lossy and all(name.endswith("conv1") for name in lossy)  # conv2 reads uint8 from a ReLU
    if has_vnni() is not False:
        assert notes == ()
        pytest.skip("this CPU has VNNI, or is no x86")
    assert notes == (
        f"This CPU has no VNNI, without which {len(lossy)} convolution(s) are not exact: oneDNN halves and rounds the "
        "weights of int8 inputs, and uint8 inputs beyond 127 may saturate. With {weight: 7, activation: 8} as "
        "their bits they are exact.",
    )
    simulator = integer_simulator(network)
    halved = integer_simulator(network)
    for name in lossy:
        layer = halved.get_submodule(name)
        assert isinstance(layer, IntegerConv2d)
        layer.weight_codes.mul_(0.5).round_().mul_(2)
    with torch.no_grad():
        plain, explained = psnr(output, simulator(photo(64))), psnr(output, halved(photo(64)))
    logger.info("no VNNI: %.1f dB, %.1f dB with halved weights", plain, explained)
    assert plain > 44
    assert explained > plain + 8


@given(st.lists(st.integers(-128, 127), min_size=1, max_size=6), st.integers(1, 255))
def test_saturates_is_what_neighbours_do(weights: list[int], largest: int) -> None:
    pairs = zip(weights, [*weights[1:], 0], strict=True)
    sums = [a * x + b * y for a, b in pairs for x in (0, largest) for y in (0, largest)]
    expected = max(sums) > 32767 or min(sums) < -32768
    assert saturates(np.array([weights, [0] * len(weights)], np.int8), largest) is expected


def test_neighbours_are_input_channels() -> None:
    weight = np.zeros((1, 4, 3, 3), np.int8)
    weight[0, 0], weight[0, 2] = 127, 127
    assert not saturates(weight, 255)
    weight[0, 1, 1, 2] = 2
    assert saturates(weight, 255)


def test_7_bits_never_saturate() -> None:
    weights = np.array([[127, 127, 127], [-128, -128, -128]], np.int8)
    assert not saturates(weights, 127)
    assert saturates(weights, 129)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("flags : fpu sse4_1 avx2", False), ("flags : sse4_1 avx2 avx512_vnni", True), ("Features : fp asimd", None)],
)
def test_vnni_is_read_from_cpuinfo(text: str, expected: bool | None, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert has_vnni(tmp_path / "cpuinfo") is expected
    assert has_vnni(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("flags : avx2 avx_vnni", True), ("flags : avx2 avx_vnni avx512_vnni", False), ("flags : avx2", False)],
)
def test_avx_vnni_alone_is_read_from_cpuinfo(text: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert has_avx_vnni_alone(tmp_path / "cpuinfo") is expected
