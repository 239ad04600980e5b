"""Equalized networks compute what they did, and lose less when real quantizers round them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import srq_nni
from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import build_float, insert_quantizers
from srq_nni.compression.options import options_from
from srq_nni.equalization import Equalized, equalize
from srq_nni.errors import OptionError, QuantizationError
from srq_nni.quantization.layers import calibrate
from tests.equalization.networks import EDSR, PRESETS, Between, conv
from tests.search.conftest import NETWORK, WEIGHTS
from tests.sr_data import REPOSITORY

DDTB = {"quantizer": "ddtb", "bits": 8}


@pytest.fixture(scope="module")
def photos() -> list[torch.Tensor]:
    """Twelve batches of eight parts of 32x32, one of each of the repository's photographs, at random places."""
    places = np.random.default_rng(0)
    files = sorted((REPOSITORY / "data" / "photos").glob("*.png"))
    images = [cv2.imread(str(file)) for file in files]
    parts = []
    for _ in range(12):
        corners = [[int(places.integers(0, side - 32)) for side in image.shape[:2]] for image in images]
        parts.append([image[y : y + 32, x : x + 32] for image, (y, x) in zip(images, corners, strict=True)])
    return [torch.from_numpy(np.stack(batch) / np.float32(255)).permute(0, 3, 1, 2) for batch in parts]


def small_edsr() -> nn.Module:
    model = build_float(NETWORK)
    checkpoint.load_weights(model, WEIGHTS)
    return model.eval()


@torch.no_grad()
def lost(model: nn.Module, truth: torch.Tensor, images: torch.Tensor, bits: int) -> float:
    """Return the mean squared error that real quantizers of activations, set and not trained, make in the output."""
    entry = {"op_names_re": [r"body\.\d+\.conv[12]$"], "target_names": ["_input_0"], "quant_dtype": f"int{bits}"}
    quantized = insert_quantizers(model, options_from({"quantizer": "ddtb", "config_list": [entry]}))
    calibrate(quantized, [images])
    return float((quantized(images) - truth).square().mean())


@pytest.mark.parametrize("network", PRESETS, ids=[network["type"] for network in PRESETS])
@pytest.mark.parametrize("quantizer", ["ddtb", "pams"])
@pytest.mark.parametrize("wiring", ["paper", "deploy", "official"])
def test_every_preset_computes_what_it_did(network: dict[str, Any], quantizer: str, wiring: str) -> None:
    torch.manual_seed(0)
    model, batches = build_float(network).eval(), [torch.rand(2, 3, 12, 12) for _ in range(2)]
    with torch.no_grad():
        before = model(batches[0])
    keys = list(model.state_dict())

    done = equalize(model, {"quantizer": quantizer, "bits": 4, "wiring": wiring}, batches, 2)

    with torch.no_grad():
        assert torch.allclose(model(batches[0]), before, atol=1e-5)
    assert list(model.state_dict()) == keys
    assert done.moved < 1e-5 and done.linear + done.positive > 0


def test_a_search_gets_further_than_its_start(photos: list[torch.Tensor]) -> None:
    start, searched = (equalize(small_edsr(), DDTB, photos[:4], iterations) for iterations in (0, 20))

    assert (start.linear, start.positive) == (1, 5)
    assert start.before == searched.before
    assert searched.after > start.after + 0.5 and start.after > start.before + 1  # dB


@pytest.mark.parametrize("bits", [8, 4])
def test_real_quantizers_lose_less(bits: int, photos: list[torch.Tensor]) -> None:
    model, plain, images = small_edsr(), small_edsr(), torch.cat(photos[:4])
    with torch.no_grad():
        truth = plain(images)

    equalize(model, {**DDTB, "bits": bits}, photos[:4], 20)

    assert lost(model, truth, images, bits) < 0.7 * lost(plain, truth, images, bits)


def test_weights_count_where_nothing_trains(photos: list[torch.Tensor]) -> None:
    trained, untrained = (equalize(small_edsr(), DDTB, photos[:2], 0, untrained=value) for value in (False, True))

    assert untrained.before < trained.before  # one more source of noise


def test_it_is_repeatable_and_leaves_the_random_state(photos: list[torch.Tensor]) -> None:
    one, two = small_edsr(), small_edsr()
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)

    assert equalize(one, DDTB, photos[:2], 3) == equalize(two, DDTB, photos[:2], 3)
    assert torch.equal(torch.rand(1), wanted)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_the_network_stays_what_it_was_beside_its_values(photos: list[torch.Tensor]) -> None:
    model = small_edsr()
    trains = [parameter.requires_grad for parameter in model.parameters()]
    kinds = [type(module) for module in model.modules()]

    srq_nni.equalize(model, DDTB, photos[:1], 1)

    assert [parameter.requires_grad for parameter in model.parameters()] == trains
    assert [type(module) for module in model.modules()] == kinds
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_dead_channels_and_black_images_leave_finite_weights() -> None:
    torch.manual_seed(0)
    model = build_float({**EDSR, "rgb_mean": (0.0, 0.0, 0.0)}).eval()
    model.body[0].conv1.weight.data[2:] = 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.bias.data.zero_()  # so that black stays black

    equalize(model, DDTB, [torch.rand(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)], 4)

    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_network_of_ones_own_needs_a_config_list() -> None:
    torch.manual_seed(0)
    model = Between(lambda net, x: net.relu(net.middle(x)))
    entry = {"op_names": ["middle"], "target_names": ["_input_0", "weight"], "quant_dtype": "int8"}

    done = equalize(model, {"quantizer": "ddtb", "config_list": [entry]}, [torch.rand(1, 3, 8, 8)], 2)

    assert (done.linear, done.positive) == (1, 0)  # what the last convolution reads is not rounded


def shared_weight() -> nn.Module:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = conv(3, 3), conv(3, 3), conv(3, 3)
            self.last.weight = self.second.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.second(self.first(x)))

    torch.manual_seed(0)
    return Shared()


ENTRY = {"op_names": ["second"], "target_names": ["_input_0", "weight"], "quant_dtype": "int8"}
ONE = [torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(
    ("model", "block", "batches", "iterations", "message"),
    [
        (
            lambda: build_float(EDSR),
            DDTB,
            [],
            1,
            "there is no batch to equalize on; give at least one input of the network",
        ),
        (lambda: build_float(EDSR), DDTB, ONE, -2, "iterations: -2 is not allowed; give a number from 0"),
        (
            lambda: Between(lambda net, x: torch.sigmoid(net.middle(torch.sigmoid(x)))),
            {"quantizer": "ddtb", "config_list": [{**ENTRY, "op_names": ["middle"]}]},
            ONE,
            1,
            "no tensor of Between that is quantized may change its basis; what is between its convolutions fixes them "
            "all, so train it as it is",
        ),
        (
            lambda: Between(lambda net, x: net.middle(x)),
            {"quantizer": "ddtb", "config_list": [{**ENTRY, "op_names": ["middle"], "target_names": ["weight"]}]},
            ONE,
            1,
            "only weights are quantized, and what rounding them costs counts for untrained networks alone; "
            "equalize with untrained, or quantize inputs",
        ),
        (
            shared_weight,
            {"quantizer": "ddtb", "config_list": [ENTRY]},
            ONE,
            1,
            "Shared would compute something else in the new bases (by ",
        ),
    ],
    ids=["no batch", "iterations", "fixed", "weights", "shared"],
)
def test_what_cannot_be_equalized(
    model: Any, block: dict[str, Any], batches: list[torch.Tensor], iterations: int, message: str
) -> None:
    given = model().eval()
    before = {key: value.clone() for key, value in given.state_dict().items()}

    with pytest.raises(QuantizationError) as raised:
        equalize(given, block, batches, iterations)

    assert str(raised.value).startswith(message)
    assert all(torch.equal(value, before[key]) for key, value in given.state_dict().items())


def test_wrong_options_are_those_of_training() -> None:
    with pytest.raises(OptionError, match="quantizer: 'ddt' is not known; give one of pams, ddtb; did you mean 'ddtb'"):
        equalize(build_float(EDSR), {"quantizer": "ddt", "bits": 8}, ONE)


def test_the_report_is_one_line() -> None:
    assert str(Equalized(1, 5, 54.712, 58.824, 1.44e-6)) == (
        "spaces with another basis: 1, with other factors: 5; with the noise of rounding the output is 58.82 dB from "
        "the float one (54.71 before), which moved by 1.4e-06"
    )
