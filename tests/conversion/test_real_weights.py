"""The pretrained networks of ../shared convert and score what was measured for them before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from srq_nni.archs.quantized_arch import build_float
from srq_nni.conversion import convert, convert_back
from srq_nni.errors import CheckpointError
from tests.conversion.converting import converted, distance, equal, loaded
from tests.conversion.states import released
from tests.sr_data import SHARED


def weights(name: str) -> Path:
    path = SHARED / "weights" / name
    if not path.is_file():
        pytest.skip(f"pretrained network {name} is not in ../shared/data/weights")
    return path


def set5(model: nn.Module, scale: int) -> float:
    """Return the PSNR on Y over Set5, with a border of ``scale`` cut off."""
    from basicsr.metrics import calculate_psnr
    from basicsr.utils import tensor2img

    folder = SHARED / "benchmark" / "Set5"
    if not folder.is_dir():
        pytest.skip("Set5 is not in ../shared/data/benchmark")
    scores = []
    for file in sorted((folder / "HR").glob("*.png")):
        low = cv2.imread(str(folder / "LR_bicubic" / f"X{scale}" / f"{file.stem}x{scale}.png"))[:, :, ::-1]
        with torch.no_grad():
            output = tensor2img([model(torch.from_numpy(low.transpose(2, 0, 1) / np.float32(255))[None])])
        high = cv2.imread(str(file))[: output.shape[0], : output.shape[1]]
        scores.append(calculate_psnr(output, high, crop_border=scale, test_y_channel=True))
    return float(np.mean(scores))


def low_images(white: float, count: int) -> list[torch.Tensor]:
    """Return corners of Set5's first low images, (1, 3, 64, 64), from 0 to ``white``."""
    files = sorted((SHARED / "benchmark" / "Set5" / "LR_bicubic" / "X4").glob("*.png"))[:count]
    if not files:
        pytest.skip("Set5 is not in ../shared/data/benchmark")
    images = [cv2.imread(str(file))[:64, :64, ::-1].transpose(2, 0, 1).astype(np.float32)[None] for file in files]
    return [torch.from_numpy(image * np.float32(white / 255)) for image in images]


def test_edsr_with_keys_of_edsr_pytorch_is_the_one_with_keys_of_basicsr(tmp_path: Path) -> None:
    official, ours = weights("EDSR_x2_f64b8_edsr_pytorch_keys.pt"), weights("EDSR_x2_f64b8.pth")
    done = convert(official, tmp_path / "ours.pth", "edsr-pytorch")
    assert equal(torch.load(done.path)["params"], torch.load(ours)["params"])
    size = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 64, "num_block": 8, "upscale": 2}
    assert done.network == {**size, "res_scale": 1, "img_range": 255.0, "rgb_mean": [0.4488, 0.4371, 0.4040]}
    back = convert_back(done.path, tmp_path / "back.pt", "edsr-pytorch")
    assert equal(torch.load(back.path), torch.load(official))
    mean = {"img_range": 255.0, "rgb_mean": (0.4488, 0.4371, 0.4040)}
    from_basicsr = convert_back(ours, tmp_path / "basicsr.pt", "pams", **mean)
    assert equal(torch.load(from_basicsr.path), torch.load(official))


def test_srresnet_converts_without_options_and_its_range_is_found(tmp_path: Path) -> None:
    official = weights("SRResNet_x4_f64b8_bn.pt")
    done = convert(official, tmp_path / "ours.pth", "ddtb")
    assert done.network == {
        "type": "SRResNet",
        "num_in_ch": 3,
        "num_out_ch": 3,
        "num_feat": 64,
        "num_block": 8,
        "upscale": 4,
        "bias": True,
        "prelu_per_channel": True,
        "img_range": 1.0,
    }
    assert equal(torch.load(convert_back(done.path, tmp_path / "back.pt", "ddtb").path), torch.load(official))


def test_the_body_of_rdn_converts(tmp_path: Path) -> None:
    official = weights("RDN_x2_d10c3g64_own_tail.pt")
    with pytest.raises(CheckpointError, match=r"has a tail of its own \(UPNet.0.weight, .*give --body-only to convert"):
        convert(official, tmp_path / "ours.pth", "edsr-pytorch")
    done = convert(official, tmp_path / "ours.pth", "edsr-pytorch", body_only=True)
    network = done.network or {}
    assert [network[key] for key in ("num_feat", "num_block", "num_layer", "num_grow_ch")] == [64, 10, 3, 64]
    assert any("left out is the tail: UPNet.0.weight" in note and "strict_load_g: false" in note for note in done.notes)
    loaded = build_float(network).load_state_dict(torch.load(done.path)["params"], strict=False)
    assert not loaded.unexpected_keys and all(key.startswith("UPNet.") for key in loaded.missing_keys)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("method", "gated"), [("pams", False), ("ddtb", False), ("ddtb", True)])
@pytest.mark.parametrize(
    ("arch", "name", "size"),
    [
        ("edsr", "EDSR_x2_f64b8_edsr_pytorch_keys.pt", {"features": 64, "blocks": 8, "scale": 2}),
        ("srresnet", "SRResNet_x4_f64b8_bn.pt", {"features": 64, "blocks": 8, "scale": 4, "plain": False}),
    ],
)
def test_a_student_with_real_weights_computes_what_the_released_code_computes(
    tmp_path: Path, arch: str, name: str, size: dict[str, Any], method: str, gated: bool, bits: int
) -> None:
    state, white = torch.load(weights(name)), 255 if arch == "edsr" else 1
    for image in low_images(white, 2):
        network = released(arch, method, image, bits=bits, gated=gated, weights=state, **size)
        model = loaded(converted(network, tmp_path, img_range=white))
        assert distance(model, network, image, white) < 1e-4  # of a grey level, in float32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "source", "scale", "psnr"),
    [
        ("EDSR_x2_f64b8_edsr_pytorch_keys.pt", "edsr-pytorch", 2, 37.804),
        ("SRResNet_x4_f64b8_bn.pt", "ddtb", 4, 31.884),
    ],
)
def test_psnr_is_what_was_measured(tmp_path: Path, name: str, source: str, scale: int, psnr: float) -> None:
    done = convert(weights(name), tmp_path / "ours.pth", source)
    assert set5(loaded(done), scale) == pytest.approx(psnr, abs=0.002)


@pytest.mark.slow
def test_psnr_of_the_converted_body_with_its_own_tail(tmp_path: Path) -> None:
    official = weights("RDN_x2_d10c3g64_own_tail.pt")
    done = convert(official, tmp_path / "ours.pth", "edsr-pytorch", body_only=True, img_range=1)
    model = build_float(done.network or {})
    convs = [nn.Conv2d(64, 64, 5, padding=2), nn.Conv2d(64, 32, 3, padding=1), nn.Conv2d(32, 12, 3, padding=1)]
    model.UPNet = nn.Sequential(
        convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2], nn.Conv2d(12, 12, 3, padding=1), nn.PixelShuffle(2)
    )
    tail = {key: value for key, value in torch.load(official).items() if key.startswith("UPNet.")}
    model.load_state_dict({**torch.load(done.path)["params"], **tail})
    assert set5(model.eval(), 2) == pytest.approx(36.655, abs=0.01)
