"""TensorRT engines on an NVIDIA GPU, where there is one: numbers, INT8 kernels, saving and loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from srq_nni.speedup import ModelSpeedupTensorRT, integer_simulator
from tests.speedup.networks import difference, edsr, photo


@pytest.mark.gpu
@pytest.mark.parametrize(("method", "bits"), [("pams", 8), ("pams", 4), ("ddtb", 2)])
def test_on_a_gpu(method: str, bits: int, tmp_path: Path) -> None:
    """Build, run, save and load an engine; its numbers are the simulator's and its body runs in INT8."""
    pytest.importorskip("tensorrt")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    network = edsr(method, bits, blocks=2, features=32)
    shapes = ((1, 3, 8, 8), (1, 3, 32, 32), (2, 3, 48, 48))
    speedup = ModelSpeedupTensorRT(network, shapes[2], onnx_path=tmp_path / "model.onnx", shapes=shapes)
    speedup.compress()
    x = torch.cat([photo(40), photo(40, 200)])
    with torch.no_grad():
        expected = integer_simulator(network, engine="tensorrt")(x)
    output, seconds = speedup.inference(x)
    error = difference(output, expected)
    assert seconds > 0 and error.max() < 3 and (error > 0.01).float().mean() < 0.05
    assert speedup.precision_report().integer_convolutions == 4
    speedup.export_quantized_model(tmp_path / "model.plan")
    loaded = ModelSpeedupTensorRT(network, (2, 3, 48, 48))
    loaded.load_quantized_model(tmp_path / "model.plan")
    assert torch.equal(loaded.inference(x)[0], output)
