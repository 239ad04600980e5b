"""Every network, method, width and wiring on each engine against the integer simulator, on a photograph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from srq_nni.quantization.layers import activation_quantizers
from srq_nni.speedup import ModelSpeedupONNXRuntime, ModelSpeedupOpenVINO, integer_simulator
from srq_nni.speedup.byte_products import has_vnni, inexact_without_vnni
from srq_nni.speedup.engine_rules import ENGINES as ENGINE_RULES
from srq_nni.speedup.graph import build_graph
from srq_nni.speedup.ties import explain_difference
from tests.speedup.architectures import ARCHITECTURES, quantized
from tests.speedup.networks import difference, photo, photo_away_from_ties

ENGINES = {"openvino": ModelSpeedupOpenVINO, "onnxruntime": ModelSpeedupONNXRuntime}
WIRINGS = ("paper", "deploy", "official", "tensorrt")
CELLS = [
    (arch, method, wiring)
    for arch in ARCHITECTURES
    for method in ("pams", "ddtb")
    for wiring in WIRINGS
    if (arch, wiring) != ("RDN", "tensorrt")  # which is deploy
]
# From bounds of least error the random RDN stores larger bytes, and a CPU without VNNI loses more than 40 dB allow.
PUBLISHED_START = {
    "pams": {"calibration": "max", "weight_range": "max"},
    "ddtb": {"calibration": "percentile", "weight_range": "percentile"},
}
# Quantized convolutions that run in integers, of 4 (EDSR, MSRResNet, SRResNet) and 10 (RDN).
IN_INTEGERS = {
    ("openvino", "EDSR"): (4, 4, 2, 4),
    ("openvino", "MSRResNet"): (4, 4, 2, 4),
    ("openvino", "RDN"): (10, 10, 9, 10),
    ("openvino", "SRResNet"): (4, 4, 4, 4),
    ("onnxruntime", "EDSR"): (2, 4, 2, 2),
    ("onnxruntime", "MSRResNet"): (2, 4, 2, 2),
    ("onnxruntime", "RDN"): (3, 7, 6, 7),
    ("onnxruntime", "SRResNet"): (0, 0, 0, 0),
}


def compare(engine: str, network: torch.nn.Module, folder: Path) -> tuple[torch.Tensor, int, int]:
    """Return |engine - simulator| in grey levels, and how many layers were promised in integers and ran so."""
    pytest.importorskip("onnx")
    pytest.importorskip(engine)
    speedup = ENGINES[engine](network, (1, 3, 32, 32), onnx_path=folder / "model.onnx", threads=1)
    speedup.compress()
    assert speedup.report is not None
    simulator = integer_simulator(network, engine=engine)
    image = photo_away_from_ties(simulator)
    with torch.no_grad():
        expected = simulator(image)
    promised = sum(layer.runs_in_integers for layer in speedup.report.layers)
    return (
        difference(speedup.inference(image)[0], expected),
        promised,
        speedup.precision_report().integer_convolutions,
    )


def rounds_here(engine: str, network: torch.nn.Module) -> bool:
    """Whether the engine rounds or saturates products of bytes of this network on this CPU."""
    rules = ENGINE_RULES[engine]
    proto, _ = build_graph(network, rules)
    return engine == "openvino" and has_vnni() is not True and bool(inexact_without_vnni(proto, rules))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("arch", "method", "wiring"), CELLS)
@pytest.mark.parametrize(
    "bits", [6, pytest.param(4, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow), 2]
)
def test_equal_to_the_simulator(engine: str, arch: str, method: str, wiring: str, bits: int, tmp_path: Path) -> None:
    error, promised, ran = compare(engine, quantized(arch, method, bits, wiring), tmp_path)
    assert promised == ran == IN_INTEGERS[engine, arch][WIRINGS.index(wiring)]
    assert error.max() < 0.01


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("arch", "method", "wiring"), CELLS)
def test_8_bits(engine: str, arch: str, method: str, wiring: str, tmp_path: Path) -> None:
    """With 255 levels a value within float32 rounding of a tie occurs now and then; it moves part of a grey level."""
    network = quantized(arch, method, 8, wiring)
    error, promised, ran = compare(engine, network, tmp_path)
    assert promised == ran == IN_INTEGERS[engine, arch][WIRINGS.index(wiring)]
    if rounds_here(engine, network):  # this CPU has no VNNI: not exact, but above 40 dB from the published start
        error, *_ = compare(engine, quantized(arch, method, 8, wiring, **PUBLISHED_START[method]), tmp_path)
        assert error.square().mean().sqrt() < 2.55
        return
    assert error.max() < 1
    assert (error > 0.01).float().mean() < 0.05


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("arch", "method", "wiring", "gated"),
    [
        pytest.param(*cell, gated, marks=() if cell[2] == "deploy" and not gated else pytest.mark.slow)
        for cell in CELLS
        for gated in (False, True)[: 1 + (cell[1] == "ddtb")]
    ],
)
def test_weights_of_7_bits_beside_activations_of_8_lose_nothing_on_any_cpu(
    engine: str, arch: str, method: str, wiring: str, gated: bool, tmp_path: Path
) -> None:
    """Two products, 255 * 64 each at most, fit int16; what is left are ties, as with VNNI."""
    network = quantized(arch, method, {"weight": 7, "activation": 8}, wiring, gated=gated)
    error, promised, ran = compare(engine, network, tmp_path)
    assert promised == ran
    assert gated or ran == IN_INTEGERS[engine, arch][WIRINGS.index(wiring)]
    proto, _ = build_graph(network, ENGINE_RULES[engine])
    assert inexact_without_vnni(proto, ENGINE_RULES[engine]) == ()
    assert error.max() < 1
    assert (error > 0.01).float().mean() < 0.05
    assert explain_difference(network, photo(), engine, threads=1).kind in ("exact", "tie")


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_of_7_bits_without_a_level_at_0_are_listed(engine: str) -> None:
    """Their odd codes reach 127."""
    pytest.importorskip("onnx")
    bits = {"weight": 7, "activation": 8}
    network = quantized("EDSR", "pams", bits, "deploy", weight_range="learned_midrise")
    proto, _ = build_graph(network, ENGINE_RULES[engine])
    assert inexact_without_vnni(proto, ENGINE_RULES[engine])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["pams", "ddtb"])
@pytest.mark.parametrize(
    ("weight_range", "bits"),
    [("learned_per_channel", 6), ("learned_per_channel", 2), ("learned_midrise", 7), ("learned_midrise", 2)],
)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_weights_with_scales_of_channels_or_without_a_level_at_0(
    engine: str, method: str, weight_range: str, bits: int, arch: str, tmp_path: Path
) -> None:
    network = quantized(arch, method, bits, "deploy", weight_range=weight_range)
    error, promised, ran = compare(engine, network, tmp_path)
    assert promised == ran == IN_INTEGERS[engine, arch][WIRINGS.index("deploy")]
    assert error.max() < 0.01


@pytest.mark.parametrize("engine", ENGINES)
def test_a_dead_channel_has_a_step_in_which_its_bias_fits(engine: str, tmp_path: Path) -> None:
    network = quantized("EDSR", "ddtb", 6, "deploy", weight_range="learned_per_channel")
    with torch.no_grad():
        network.body[0].conv1.weight[2] = 0
        network.body[0].conv1.bias[2] = 0.3
    error, promised, ran = compare(engine, network, tmp_path)
    assert promised == ran == 4
    assert error.max() < 0.01


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["pams", "ddtb"])
@pytest.mark.parametrize("wiring", ["deploy", "tensorrt"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_skips_in_8_bits(engine: str, method: str, wiring: str, arch: str, tmp_path: Path) -> None:
    """A convolution reads a quantizer of 2 bits behind one of 8: two roundings, and no product of 8 bits on any CPU."""
    error, promised, ran = compare(engine, quantized(arch, method, 2, wiring, skip=8), tmp_path)
    assert promised == ran == IN_INTEGERS[engine, arch][WIRINGS.index(wiring)]
    assert error.max() < 0.01


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("bits", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_gates_on_openvino(arch: str, wiring: str, bits: int, tmp_path: Path) -> None:
    network = quantized(arch, "ddtb", bits, wiring, gated=True)
    error, promised, ran = compare("openvino", network, tmp_path)
    assert promised == ran == IN_INTEGERS["openvino", arch][WIRINGS.index(wiring)]
    assert error.max() < 0.01


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gates_on_onnxruntime(arch: str, tmp_path: Path) -> None:
    error, promised, ran = compare("onnxruntime", quantized(arch, "ddtb", 4, "paper", gated=True), tmp_path)
    assert promised == ran
    assert error.max() < 0.01


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["pams", "ddtb"])
@pytest.mark.parametrize(("arch", "on_onnxruntime"), [("EDSR", 5), ("MSRResNet", 4), ("RDN", 9), ("SRResNet", 0)])
def test_head_and_tail_in_8_bits(engine: str, method: str, arch: str, on_onnxruntime: int, tmp_path: Path) -> None:
    """OpenVINO then runs every convolution in integers; an output quantizer is what ONNX Runtime lacks at the ends."""
    network = quantized(arch, method, 4, "deploy", head=8, tail=8)
    with torch.no_grad():  # the bounds of the head are pixels, 1/255 apart, and ratios of two pixels are often ties
        for _, quantizer in activation_quantizers(network):
            for bound in quantizer.bounds():
                bound.mul_(1.00137)
    error, promised, ran = compare(engine, network, tmp_path)
    assert promised == ran == ((14 if arch == "RDN" else 8) if engine == "openvino" else on_onnxruntime)
    if not rounds_here(engine, network):
        assert (error > 0.01).float().mean() < 0.05  # a tie at 8 bits may move a code of 4 bits
