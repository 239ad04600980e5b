"""The quantized networks in weights/: they load, hold what their cards say, and run as integers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_psnr
from basicsr.utils.matlab_functions import imresize

import srq_nni
from srq_nni.archs.quantized_arch import build_float
from srq_nni.quantization.layers import activation_quantizers, quantized_convolutions
from srq_nni.speedup import explain_difference
from tests.speedup.networks import difference, photo_away_from_ties
from tests.speedup.test_matrix import rounds_here
from tests.sr_data import REPOSITORY

WEIGHTS = REPOSITORY / "weights"
SHIPPED = sorted(WEIGHTS.glob("*.safetensors"))
SIDE = 192  # of the crops of the photographs


def crops() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (low, high) of the middles of three photographs, (H, W, 3) in [0, 1]."""
    pairs = []
    for file in sorted((REPOSITORY / "data/photos").glob("*.png"))[:3]:
        image = cv2.imread(str(file))[..., ::-1] / 255
        top, left = ((side - SIDE) // 2 for side in image.shape[:2])
        high = image[top : top + SIDE, left : left + SIDE]
        pairs.append((imresize(high, 0.5).clip(0, 1), high))
    return pairs


def psnr(made: np.ndarray, high: np.ndarray) -> float:
    images = ((image.clip(0, 1) * 255).round()[..., ::-1] for image in (made, high))
    return float(calculate_psnr(*images, crop_border=2, test_y_channel=True))


def enlarged(model: torch.nn.Module, low: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(low.transpose(2, 0, 1)).float()[None])[0].numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_network_is_what_its_name_and_card_say(path: Path) -> None:
    model, bits = srq_nni.load(path), int(path.stem.split("_")[-1].removesuffix("bit"))
    card = path.with_suffix(".md").read_text()
    assert {quantizer.bits for _, quantizer in activation_quantizers(model)} == {bits}
    quantized = [layer for _, layer in quantized_convolutions(model) if layer.weight_quantizer is not None]
    assert len(quantized) == 10
    assert f"DDTB, {bits} bits, wiring `paper`" in card and f"**this network, {bits} bits**" in card
    assert path.stat().st_size < 1e6 and f"| file | {path.stat().st_size / 1e6:.2f} MB;" in card


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_network_enlarges_photographs(path: Path) -> None:
    """Far better than bicubic enlargement, and not far from the float network."""
    model = srq_nni.load(path)
    network = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 32, "num_block": 5, "upscale": 2}
    teacher = build_float(network).eval()
    teacher.load_state_dict(torch.load(WEIGHTS / "EDSR_x2_f32b5.pth", weights_only=True)["params"])
    scores = [
        [psnr(made, high) for made in (enlarged(model, low), enlarged(teacher, low), imresize(low, 2))]
        for low, high in crops()
    ]
    own, of_teacher, of_bicubic = np.mean(scores, axis=0)
    assert own > of_bicubic + 2 and own > of_teacher - 1.5


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_network_runs_as_integers(path: Path, tmp_path: Path) -> None:
    model = srq_nni.load(path)
    simulator = srq_nni.integer_simulator(model)
    image = photo_away_from_ties(simulator, 48)
    report = srq_nni.export_onnx(model, tmp_path / "model.onnx", engine="openvino")
    assert report.certificate.coverage == pytest.approx(0.646, abs=2e-3)
    engine = srq_nni.ModelSpeedupOpenVINO(tmp_path / "model.onnx", input_shape=(1, 3, 48, 48))
    engine.compress()
    with torch.no_grad():
        expected = simulator(image)
    assert difference(engine.inference(image)[0], expected).max() < 0.01


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_on_photographs_as_they_come_nothing_but_ties_differs(path: Path) -> None:
    """Nor what a CPU without VNNI rounds at 8 bits."""
    model = srq_nni.load(path)
    rounds = rounds_here("openvino", model)
    for low, _ in crops():
        image = torch.from_numpy(low[:48, :64].transpose(2, 0, 1).copy()).float()[None]
        found = explain_difference(model, image, "openvino")
        if rounds:
            assert found.kind in ("exact", "tie", "lossy") and found.largest < 5, str(found)
        else:
            assert found.kind in ("exact", "tie") and found.remaining < 0.01, str(found)


def test_there_are_some() -> None:
    assert SHIPPED
