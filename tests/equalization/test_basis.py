"""Other bases leave what a network computes, and the start of a rotation spreads what is strong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from srq_nni.archs.quantized_arch import build_float
from srq_nni.equalization.basis import Basis, balanced_rotation, in_bases
from srq_nni.equalization.spaces import Freedom, Space, channel_spaces
from tests.equalization.networks import LINEAR, POSITIVE, PRESETS, Between


def random_basis(space: Space, seed: int) -> Basis:
    generator = torch.Generator().manual_seed(seed)
    start = torch.linalg.qr(torch.randn(space.channels, space.channels, generator=generator, dtype=torch.float64))[0]
    basis = Basis(space, start, torch.randn(space.channels, generator=generator, dtype=torch.float64))
    if basis.turn is not None:
        basis.turn.data.normal_(generator=generator)
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
def test_the_start_is_a_rotation_that_spreads_the_strongest_component(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    components = torch.linalg.qr(torch.randn(count, count, generator=generator, dtype=torch.float64))[0]
    variances = 10.0 ** -torch.arange(count, dtype=torch.float64)

    rotation = balanced_rotation(components @ torch.diag(variances) @ components.T)

    assert torch.allclose(rotation @ rotation.T, torch.eye(count, dtype=torch.float64), atol=1e-12)
    spread = (rotation @ components[:, 0]).square()
    assert torch.allclose(spread, torch.full((count,), 1 / count, dtype=torch.float64), atol=1e-12)
