"""A network that came out of NNI, plain, and its calibration_config: enough for an engine."""

from __future__ import annotations

from pathlib import Path

import srq_nni
from tests.compression.doors import batches
from tests.compression.test_quantizers import trained


def test_an_unwrapped_network_and_its_calibration_config_go_to_an_engine(photo_folders: Path, tmp_path: Path) -> None:
    data = batches(photo_folders)
    quantizer = trained("pams", data)
    simulated = srq_nni.integer_simulator(quantizer.quantized_network())(data[0]["lq"])
    config, plain = quantizer.get_calibration_config(), quantizer.unwrap_model()
    engine = srq_nni.ModelSpeedupOpenVINO(plain, tuple(data[0]["lq"].shape), config, tmp_path / "model.onnx")
    engine.compress()
    assert engine.report is not None and len(engine.report.layers) == 4
    output, seconds = engine.inference(data[0]["lq"])
    assert (output - simulated).abs().max() * 255 < 0.01 and seconds > 0
