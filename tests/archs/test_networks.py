"""RDN and SRResNet: shapes, errors, and real pretrained weights where they are at hand."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import build_float
from srq_nni.archs.rdn_arch import RDN
from srq_nni.archs.srresnet_arch import SRResNet
from srq_nni.errors import OptionError
from tests.sr_data import SHARED

TINY_RDN = {"type": "RDN", "num_feat": 8, "num_block": 2, "num_layer": 3, "num_grow_ch": 4}


@pytest.mark.parametrize("upscale", [2, 3, 4])
def test_rdn_enlarges(upscale: int) -> None:
    model = build_float({**TINY_RDN, "upscale": upscale})
    assert model(torch.rand(2, 3, 7, 5)).shape == (2, 3, 7 * upscale, 5 * upscale)


@pytest.mark.parametrize("upscale", [2, 4])
@pytest.mark.parametrize("per_channel", [False, True])
def test_srresnet_enlarges(upscale: int, per_channel: bool) -> None:
    model = SRResNet(num_feat=8, num_block=2, upscale=upscale, prelu_per_channel=per_channel, bias=per_channel)
    assert model(torch.rand(2, 3, 7, 5)).shape == (2, 3, 7 * upscale, 5 * upscale)
    assert model.relu.weight.numel() == (8 if per_channel else 1)
    assert (model.conv_input.bias is not None) == per_channel


@pytest.mark.parametrize("arch", ["RDN", "SRResNet"])
def test_img_range_scales_inside_and_back(arch: str) -> None:
    network = {"type": arch, "num_feat": 8, "num_block": 1, "upscale": 2}
    model = build_float(network | ({"num_layer": 2, "num_grow_ch": 4} if arch == "RDN" else {})).eval()
    x = torch.rand(1, 3, 6, 6)
    with torch.no_grad():
        inside = model(x)
        model.img_range = 1.0
        outside = model(x * 255) / 255
    torch.testing.assert_close(inside, outside, rtol=1e-5, atol=1e-6)


def test_rdn_mean_is_subtracted_and_added_and_not_in_the_state_dict() -> None:
    shifted, plain = RDN(num_feat=4, num_block=1, num_layer=1, num_grow_ch=4, rgb_mean=(0.4, 0.5, 0.6)), None
    plain = RDN(num_feat=4, num_block=1, num_layer=1, num_grow_ch=4)
    plain.load_state_dict(shifted.state_dict())
    mean = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)
    x = torch.rand(1, 3, 5, 5)
    torch.testing.assert_close(shifted(x), plain(x - mean) + mean)
    assert "mean" not in shifted.state_dict()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"type": "RDN", "upscale": 8}, "upscale: 8 is not supported by RDN; give 2, 3 or 4"),
        ({"type": "SRResNet", "upscale": 3}, "upscale: 3 is not supported by SRResNet; give 2 or 4"),
        ({"type": "RND"}, "network_g: type 'RND' is not known; give a registered network; did you mean 'RDN'?"),
        ({}, "network_g: type None is not known; give a registered network"),
    ],
)
def test_wrong_network_is_named(network: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        build_float(network)
    assert str(caught.value).removeprefix("network_g: ").startswith(message.removeprefix("network_g: "))


def test_unknown_argument_is_named() -> None:
    with pytest.raises(OptionError, match=r"num_feats.*; give the arguments of RDN"):
        build_float({"type": "RDN", "num_feats": 64})


def weights(name: str) -> Path:
    path = SHARED / "weights" / name
    if not path.is_file():
        pytest.skip(f"pretrained network {name} is not in ../shared/data/weights")
    return path


def test_srresnet_of_ddtb_keys_repeats_its_measured_psnr() -> None:
    from basicsr.metrics import calculate_psnr
    from basicsr.utils import tensor2img

    model = SRResNet(num_block=8, img_range=1.0, bias=True, prelu_per_channel=True, upscale=4).eval()
    assert not checkpoint.load_weights(model, weights("SRResNet_x4_f64b8_bn.pt"))
    folder = SHARED / "benchmark" / "Set5"
    if not folder.is_dir():
        pytest.skip("Set5 is not in ../shared/data/benchmark")
    scores = []
    for file in sorted((folder / "HR").glob("*.png")):
        low = cv2.imread(str(folder / "LR_bicubic" / "X4" / f"{file.stem}x4.png"))[:, :, ::-1].astype(np.float32) / 255
        with torch.no_grad():
            output = tensor2img([model(torch.from_numpy(low.transpose(2, 0, 1).copy())[None])])
        truth = cv2.imread(str(file))[: output.shape[0], : output.shape[1]]
        scores.append(calculate_psnr(output, truth, 4, test_y_channel=True))
    assert np.mean(scores) == pytest.approx(31.884, abs=1e-3)


def test_rdn_body_has_the_names_and_shapes_of_edsr_pytorch() -> None:
    state = torch.load(weights("RDN_x2_d10c3g64_own_tail.pt"), weights_only=True)
    body = {key: value for key, value in state.items() if not key.startswith("UPNet.")}
    model = RDN(num_block=10, num_layer=3, num_grow_ch=64, upscale=2)
    missing, unexpected = model.load_state_dict(body, strict=False)
    assert not unexpected
    assert {key.split(".")[0] for key in missing} == {"UPNet"}


def test_real_edsr_weights_load_strictly() -> None:
    edsr = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 64, "num_block": 8, "upscale": 2}
    assert not checkpoint.load_weights(build_float(edsr), weights("EDSR_x2_f64b8.pth"))
    small = {**edsr, "num_feat": 32, "num_block": 5, "rgb_mean": [0, 0, 0]}
    assert not checkpoint.load_weights(build_float(small), weights("EDSR_x2_f32b5.pth"))
