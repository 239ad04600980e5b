"""OpenVINO with an integer body and bfloat16 elsewhere: what its own choice costs, and what a tail alone does.

What needs bfloat16 also runs on other CPUs, see ``tests/emulation``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

onnx = pytest.importorskip("onnx")
pytest.importorskip("openvino")

from srq_nni.speedup import ModelSpeedupOpenVINO, integer_simulator  # noqa: E402
from srq_nni.speedup.bfloat16_tail import tail_in_bfloat16  # noqa: E402
from srq_nni.speedup.engine_rules import ENGINES  # noqa: E402
from srq_nni.speedup.graph import build_graph  # noqa: E402
from srq_nni.speedup.machine import cpu_flags  # noqa: E402
from srq_nni.speedup.openvino import BFLOAT16, BFLOAT16_TAIL, FLOAT32, has_bfloat16  # noqa: E402
from tests.speedup.architectures import ARCHITECTURES, quantized  # noqa: E402
from tests.speedup.networks import edsr, photo, psnr  # noqa: E402

TAILS = {
    "EDSR": ["conv_after_body", "Add", "upsample.0", "DepthToSpace", "conv_last"],
    "MSRResNet": ["upconv1", "DepthToSpace", "LeakyRelu", "conv_hr", "LeakyRelu", "conv_last"],
    "RDN": ["UPNet.0", "DepthToSpace", "UPNet.2"],
    "SRResNet": ["conv_mid", "BatchNormalization", "Add", "upscale.0", "DepthToSpace", "PRelu", "conv_output"],
}


@pytest.fixture
def needs_bfloat16() -> None:
    if not has_bfloat16():
        pytest.skip("OpenVINO has no bfloat16 on this CPU")


def compressed(network: nn.Module, precision: str, folder: Path) -> ModelSpeedupOpenVINO:
    folder.mkdir(exist_ok=True)
    speedup = ModelSpeedupOpenVINO(
        network, (1, 3, 32, 32), onnx_path=folder / "model.onnx", threads=1, float_precision=precision
    )
    speedup.compress()
    return speedup


def precisions(speedup: ModelSpeedupOpenVINO) -> list[str]:
    """Return the precision of each convolution, in the order in which they run."""
    return [precision for _, precision, _ in speedup.precision_report().kernels]


def with_bfloat16(simulator: nn.Module) -> nn.Module:
    """Round weights, inputs and outputs of the float convolutions to bfloat16, in place."""
    for layer in simulator.modules():
        if type(layer) is nn.Conv2d:
            layer.weight.data = layer.weight.data.bfloat16().float()
            layer.register_forward_pre_hook(lambda module, args: (args[0].bfloat16().float(),))
            layer.register_forward_hook(lambda module, args, output: output.bfloat16().float())
    return simulator


@pytest.mark.parametrize(("method", "least"), [("pams", 55), ("ddtb", 57)])
def test_8_bits_beside_bfloat16(method: str, least: float, tmp_path: Path) -> None:
    """Rounding the head moves codes: at 8 bits by one of 255 levels, at 4 bits by one of 15, which costs 20 dB more."""
    network = edsr(method, 8, trained=True)
    with torch.no_grad():
        expected = integer_simulator(network)(photo(64))
        rounded = psnr(with_bfloat16(integer_simulator(network))(photo(64)), expected)
    assert rounded > least
    if not has_bfloat16():
        pytest.skip("OpenVINO has no bfloat16 on this CPU")
    speedup = compressed(network, BFLOAT16, tmp_path)
    assert speedup.floats_ran_in == BFLOAT16
    assert precisions(speedup)[0] == "bf16"
    assert psnr(speedup.inference(photo(64))[0], expected) > rounded - 3


@pytest.mark.usefixtures("needs_bfloat16")
@pytest.mark.parametrize(("method", "bits"), [("pams", 8), ("ddtb", 8), ("pams", 4), ("ddtb", 2)])
def test_a_tail_in_bfloat16_costs_its_own_rounding_at_any_width(method: str, bits: int, tmp_path: Path) -> None:
    network = edsr(method, bits, trained=True)
    speedup = compressed(network, BFLOAT16_TAIL, tmp_path)
    assert speedup.floats_ran_in == BFLOAT16_TAIL
    assert precisions(speedup)[0] == "f32" and precisions(speedup)[-3:] == ["bf16"] * 3
    with torch.no_grad():
        found = psnr(speedup.inference(photo(64))[0], integer_simulator(network)(photo(64)))
    assert 62 < found < 70


@pytest.mark.skipif("amx_int8" not in cpu_flags(), reason="this CPU has no AMX")
def test_all_but_float32_runs_on_tiles_where_the_cpu_has_them(tmp_path: Path) -> None:
    kernels = compressed(edsr("pams", 8), BFLOAT16_TAIL, tmp_path).precision_report().kernels
    assert {precision for _, precision, _ in kernels} >= {"i8", "u8", "bf16", "f32"}
    assert all(("amx" in kernel) is (precision != "f32") for _, precision, kernel in kernels)


@pytest.mark.usefixtures("needs_bfloat16")
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("wiring", ["paper", "deploy", "official"])
def test_every_network_with_a_tail_in_bfloat16(arch: str, wiring: str, tmp_path: Path) -> None:
    network = quantized(arch, "ddtb", 4, wiring, gated=True)
    image = photo(40)
    exact, tail = (compressed(network, precision, tmp_path / precision) for precision in (FLOAT32, BFLOAT16_TAIL))
    assert tail.precision_report().integer_convolutions == exact.precision_report().integer_convolutions > 0
    assert "bf16" in precisions(tail)
    found, expected = tail.inference(image)[0], exact.inference(image)[0]
    assert psnr(found, expected) > 57
    assert not torch.equal(found, expected)


def test_a_cpu_without_bfloat16_runs_float32(tmp_path: Path) -> None:
    if has_bfloat16():
        pytest.skip("this CPU has bfloat16")
    network = edsr("ddtb", 4)
    tail, exact = (compressed(network, precision, tmp_path) for precision in (BFLOAT16_TAIL, FLOAT32))
    assert tail.floats_ran_in == exact.floats_ran_in == FLOAT32
    assert torch.equal(tail.inference(photo(32))[0], exact.inference(photo(32))[0])


def in_bfloat16(proto: Any) -> Iterator[str]:
    """Yield layer or kind of each node that reads and writes bfloat16."""
    for node in proto.graph.node:
        if all(name.endswith("@bfloat16") for name in (*node.input, *node.output)):
            weights = [name for name in node.input if name.endswith(".weight@bfloat16")]
            yield weights[0].removesuffix(".weight@bfloat16") if node.op_type == "Conv" else node.op_type


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("wiring", ["paper", "deploy", "official"])
def test_the_tail_begins_behind_the_last_quantizer(arch: str, wiring: str) -> None:
    network = quantized(arch, "ddtb", 4, wiring, gated=True)
    proto, _ = build_graph(network, ENGINES["openvino"])
    written = tail_in_bfloat16(proto)
    assert list(in_bfloat16(written)) == TAILS[arch]
    kept = [node for node in written.graph.node if not any("@bfloat16" in name for name in (*node.input, *node.output))]
    before = {node.output[0]: node for node in proto.graph.node}
    assert all(node == before[node.output[0]] for node in kept), "all else is as it was"
    assert {node.op_type for node in proto.graph.node if node not in kept} <= {"Conv", *TAILS[arch]}
    assert len({node.output[0] for node in written.graph.node}) == len(written.graph.node)


def test_without_float_convolutions_nothing_changes() -> None:
    proto, _ = build_graph(quantized("EDSR", "pams", 4, "deploy", head=8, tail=8), ENGINES["openvino"])
    assert list(tail_in_bfloat16(proto).graph.node) == list(proto.graph.node)


def test_weights_are_rounded_to_the_nearest() -> None:
    network = edsr("pams", 4)
    proto, _ = build_graph(network, ENGINES["openvino"])
    (found,) = (c for c in tail_in_bfloat16(proto).graph.initializer if c.name == "conv_last.weight@bfloat16")
    bits = torch.frombuffer(bytearray(found.raw_data), dtype=torch.bfloat16)
    assert found.data_type == onnx.TensorProto.BFLOAT16
    assert torch.equal(bits.view(tuple(found.dims)), network.get_submodule("conv_last").weight.bfloat16())
