"""OpenVINO with an integer body and bfloat16 elsewhere, on CPUs that have it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from srq_nni.speedup import export_onnx, integer_simulator
from srq_nni.speedup.openvino import core as openvino_core
from tests.speedup.networks import edsr, photo, psnr

logger = logging.getLogger(__name__)


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
    pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    network = edsr(method, 8, trained=True)
    with torch.no_grad():
        expected = integer_simulator(network)(photo(64))
        emulated = psnr(with_bfloat16(integer_simulator(network))(photo(64)), expected)
    assert emulated > least
    core = openvino_core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16")
    export_onnx(network, tmp_path / "model.onnx")
    compiled = core.compile_model(str(tmp_path / "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    found = psnr(torch.from_numpy(compiled(photo(64).numpy())[0]), expected)
    logger.info("%s: %.1f dB, emulated %.1f dB", method, found, emulated)
    assert found > emulated - 3
