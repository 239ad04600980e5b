"""Other bases leave what a network computes, and the start of a rotation spreads what is strong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from srq_nni.archs.quantized_arch import build_float
from srq_nni.equalization.basis import Basis, balanced, evened, in_bases
from srq_nni.equalization.spaces import Freedom, Space, channel_spaces
from tests.equalization.networks import LINEAR, POSITIVE, PRESETS, Between


def random_rotation(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(count, count, generator=generator, dtype=torch.float64))[0]


def random_basis(space: Space, seed: int) -> Basis:
    generator = torch.Generator().manual_seed(seed)
    stretch = torch.randn(space.channels, generator=generator, dtype=torch.float64)
    if space.freedom != Freedom.LINEAR:
        return Basis(stretch)
    basis = Basis(stretch, (random_rotation(len(stretch), generator), random_rotation(len(stretch), generator)))
    for rotation in (basis.inner, basis.outer):
        rotation.turn.data.normal_(generator=generator)
    return basis


def assert_computes_the_same(model: torch.nn.Module, seed: int) -> None:
    """Check the output in random bases, and that the parameters of every space have moved."""
    torch.manual_seed(seed)
    model, images = model.double().eval(), torch.rand(1, 3, 9, 7, dtype=torch.float64)
    state, spaces = dict(model.named_parameters()), channel_spaces(model)
    assert spaces

    changed = in_bases(state, spaces, [random_basis(space, seed) for space in spaces])

    outputs = [functional_call(model, parameters, (images.clone(),)) for parameters in (state, changed)]
    assert torch.allclose(*outputs, rtol=1e-9, atol=1e-9)
    assert not [use for space in spaces for use in space.uses if _same(state, changed, use.module)]


def _same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], module: str) -> bool:
    return torch.equal(one[f"{module}.weight"], other[f"{module}.weight"])


@pytest.mark.parametrize("network", PRESETS, ids=[network["type"] for network in PRESETS])
def test_the_known_networks_compute_the_same(network: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build_float(network)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2), module.bias.data.normal_()
        elif isinstance(module, torch.nn.PReLU):
            module.weight.data.uniform_(0, 0.5)

    assert_computes_the_same(model, seed=1)


@settings(max_examples=30, deadline=None)
@given(step=st.sampled_from([*LINEAR.values(), *POSITIVE.values()]), seed=st.integers(0, 2**20))
def test_small_networks_compute_the_same(step: Any, seed: int) -> None:
    torch.manual_seed(seed)

    assert_computes_the_same(Between(step), seed)


def test_the_inverse_is_one() -> None:
    basis = random_basis(Space(6, Freedom.LINEAR, ()), seed=3)

    matrix, inverse = basis.matrices()

    assert torch.allclose(matrix @ inverse, torch.eye(6, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 7, 32])
def test_the_start_spreads_every_component_and_costs_least(count: int) -> None:
    components = random_rotation(count, torch.Generator().manual_seed(0))
    variances = 2.0 ** -torch.arange(count, dtype=torch.float64).clamp_max(12)
    covariance = components @ torch.diag(variances) @ components.T

    with torch.no_grad():
        matrix, inverse = balanced(covariance).matrices()

    spread = (matrix @ covariance @ matrix.T).diagonal()
    assert spread.max() < 2 * spread.mean() + 1e-12  # as no entry of the orthonormal DCT is above sqrt(2 / C)
    noise = inverse.square().sum()  # of equal steps in the new channels, seen in the old ones
    assert torch.allclose(spread.sum() * noise, variances.sqrt().sum() ** 2)  # least possible (Cauchy and Schwarz)
    assert math.isclose(float(matrix.det().abs()), 1, rel_tol=1e-9)


def test_an_only_component_is_spread_evenly() -> None:
    only = torch.tensor([3.0, -1.0, 2.0, 0.0], dtype=torch.float64)

    with torch.no_grad():
        matrix, _ = balanced(torch.outer(only, only)).matrices()

    assert torch.allclose((matrix @ only).abs(), (matrix @ only).abs().mean().expand(4))


def test_factors_halve_what_ranges_differ_by() -> None:
    with torch.no_grad():
        matrix, _ = evened(torch.tensor([16.0, 4.0, 1.0, 1e-9])).matrices()

    made = torch.tensor([16.0, 4.0, 1.0, 0.16]) * matrix.diagonal()  # a hundredth of the largest is the least
    assert torch.allclose(made[:3] / made[0], torch.tensor([1.0, 0.5, 0.25]))
    assert torch.allclose(made[3] / made[0], torch.tensor(0.1))
    assert math.isclose(float(matrix.det()), 1, rel_tol=1e-6)


@pytest.mark.parametrize("start", [balanced(torch.zeros(3, 3)), evened(torch.zeros(3))])
def test_channels_that_are_always_zero_keep_their_size(start: Basis) -> None:
    with torch.no_grad():
        matrix, _ = start.matrices()

    assert torch.allclose(matrix @ matrix.T, torch.eye(3).to(matrix), atol=1e-6)
