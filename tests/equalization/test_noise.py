"""The noise has the size that rounding has, at each kind of place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from srq_nni.compression.sites import Site
from srq_nni.equalization.noise import Noise
from srq_nni.functional import ddtb_quantize, pams_quantize

IMAGES = torch.rand(3, 2, 64, 64, generator=torch.Generator().manual_seed(5)) * 3 - 1


def network() -> nn.Sequential:
    convolution = nn.Conv2d(2, 2, 1, bias=False)
    convolution.weight.data = torch.eye(2).view(2, 2, 1, 1)
    return nn.Sequential(convolution)


def error(site: Site, symmetric: bool, model: nn.Sequential | None = None) -> torch.Tensor:
    model = model or network()
    with torch.no_grad():
        noisy = Noise(model, [site], symmetric=symmetric, seed=1).run(IMAGES, dict(model.named_parameters()))
        return noisy - model(IMAGES)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("target", ["_input_0", "_output_0"])
def test_activations_of_ddtb_get_the_error_of_its_grid(bits: int, target: str) -> None:
    lower, upper = IMAGES.amin((1, 2, 3)).mean(), IMAGES.amax((1, 2, 3)).mean()
    rounding = ddtb_quantize(IMAGES, lower, upper, bits) - IMAGES

    found = error(Site("0", target, bits), symmetric=False)

    assert float(found.std()) == pytest.approx(float(rounding.std()), rel=0.02)
    assert float(found.abs().max()) <= float(upper - lower) / (2**bits - 1) / 2


def test_activations_of_pams_get_the_error_of_its_grid() -> None:
    rounding = pams_quantize(IMAGES, IMAGES.abs().amax((1, 2, 3)).mean(), 8) - IMAGES

    assert float(error(Site("0", "_input_0", 8), symmetric=True).std()) == pytest.approx(
        float(rounding.std()), rel=0.02
    )


def test_a_tensor_that_is_never_negative_has_steps_from_zero() -> None:
    images = IMAGES.abs() + 1
    model = network()

    with torch.no_grad():
        noisy = Noise(model, [Site("0", "_input_0", 4)], symmetric=False).run(images, dict(model.named_parameters()))

    assert float((noisy - images).abs().max()) == pytest.approx(float(images.amax((1, 2, 3)).mean()) / 15 / 2, rel=0.01)


@pytest.mark.parametrize(("symmetric", "divisor"), [(True, 127), (False, 127.5)], ids=["pams", "ddtb"])
@pytest.mark.parametrize("options", [{}, {"weight_range": "learned_per_channel"}], ids=["tensor", "channel"])
@pytest.mark.parametrize("layer", [nn.Conv2d, nn.Linear])
def test_weights_get_the_error_of_one_step_or_of_one_a_channel(
    layer: type[nn.Module], options: dict[str, Any], symmetric: bool, divisor: float
) -> None:
    weight = torch.randn(2, 2000, generator=torch.Generator().manual_seed(2)) * torch.tensor([[1.0], [0.1]])
    parts = torch.eye(2000)  # each image shows one column of the weight
    if layer is nn.Conv2d:
        model, parts = nn.Sequential(nn.Conv2d(2000, 2, 1, bias=False)), parts.view(2000, 2000, 1, 1)
    else:
        model = nn.Sequential(nn.Linear(2000, 2, bias=False))
    model[0].weight.data = weight.view_as(model[0].weight)
    noise = Noise(model, [Site("0", "weight", 8, options)], symmetric=symmetric, seed=1)
    with torch.no_grad():
        found = noise.run(parts, dict(model.named_parameters())).flatten(1).T - weight

    largest = weight.abs().amax(1) if options else weight.abs().max().expand(2)
    for row, top in zip(found, largest, strict=True):
        assert float(row.std()) == pytest.approx(float(top / divisor / 12**0.5), rel=0.05)


def test_it_is_drawn_again_after_a_restart_and_leaves_no_hook() -> None:
    model = network()
    noise = Noise(model, [Site("0", "_input_0", 8), Site("0", "weight", 8)], symmetric=False)
    state = dict(model.named_parameters())
    with torch.no_grad():
        first, second = (noise.run(IMAGES, state) for _ in range(2))
        noise.restart()
        again = noise.run(IMAGES, state)

    assert torch.equal(first, again) and not torch.equal(first, second)
    assert not model[0]._forward_pre_hooks and not model[0]._forward_hooks


def test_random_numbers_of_the_process_are_not_touched() -> None:
    model = network()
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)

    error(Site("0", "_input_0", 8), symmetric=False, model=model)

    assert torch.equal(torch.rand(1), wanted)
