"""Relative steps: bounds of any scale train alike, and no learning rate can make them cross, collapse or turn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from srq_nni.compression.bounds import LARGEST_STEP, RelativeSteps, bounds_rate
from srq_nni.errors import OptionError
from srq_nni.quantization.activation import ActivationQuantizer, DDTBActivation, PAMSActivation


def trained(quantizer: ActivationQuantizer, scale: float, lr: float, steps: int = 20) -> list[float]:
    """Train the bounds of a quantizer on a tensor of this scale and return them in units of it."""
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(2, 3, 8, 8, generator=generator) * scale for _ in range(2))
    starts = (-1.0, 2.0) if isinstance(quantizer, DDTBActivation) else (2.0,)
    for bound, start in zip(quantizer.bounds(), starts, strict=True):
        bound.data.fill_(start * scale)
    optimizer = torch.optim.Adam(quantizer.bounds(), lr=lr)
    moving = RelativeSteps(nn.ModuleList([quantizer]))
    optimizer.register_step_pre_hook(moving.before)
    optimizer.register_step_post_hook(moving.after)
    for _ in range(steps):
        optimizer.zero_grad()
        (quantizer(x) / scale - target / scale).square().mean().backward()
        optimizer.step()
    return [bound.item() / scale for bound in quantizer.bounds()]


@pytest.mark.parametrize("maker", [PAMSActivation, DDTBActivation])
def test_features_of_any_scale_train_alike(maker: type[ActivationQuantizer]) -> None:
    small, large = trained(maker(4), 1 / 255, 1e-2), trained(maker(4), 255.0, 1e-2)
    assert small == pytest.approx(large, rel=1e-3)
    assert small != pytest.approx([-1.0, 2.0][-len(small) :], rel=1e-2)


@given(lr=st.floats(1e-4, 100.0), bits=st.sampled_from([2, 4, 8]), scale=st.sampled_from([1e-2, 1.0, 255.0]))
def test_no_learning_rate_makes_bounds_illegal(lr: float, bits: int, scale: float) -> None:
    (alpha,) = trained(PAMSActivation(bits), scale, lr, steps=6)
    assert alpha >= 2.0 * (1 - LARGEST_STEP) ** 6 * 0.99
    lower, upper = trained(DDTBActivation(bits), scale, lr, steps=6)
    assert lower <= 0 <= upper
    assert upper - lower >= 3.0 * (1 - 2 * LARGEST_STEP) ** 6 * 0.99 or upper == 0 or lower == 0


def test_a_bound_moves_by_the_rate_times_the_width() -> None:
    quantizer = DDTBActivation(4)  # -10, 10
    moving = RelativeSteps(nn.ModuleList([quantizer]))
    moving.before()
    quantizer.upper.data += 0.1
    quantizer.lower.data -= 3.0
    moving.after()
    assert quantizer.upper.item() == pytest.approx(10 + 0.1 * 20, rel=1e-5)
    assert quantizer.lower.item() == pytest.approx(-10 - LARGEST_STEP * 20)


def test_the_unit_of_the_rate() -> None:
    assert bounds_rate() == (2e-3, True)
    assert bounds_rate(profile="official") == (1e-2, False)
    assert bounds_rate(relative_lr=0.5, profile="official") == (0.5, True)
    assert bounds_rate(lr=0.5) == (0.5, False)
    assert bounds_rate(relative_lr=0.5) == (0.5, True)
    with pytest.raises(OptionError) as error:
        bounds_rate(0.5, 0.25)
    assert str(error.value) == "bounds: lr 0.5 and relative_lr 0.25 are both given; give one of them"
    for wrong in (-0.1, float("nan"), "fast", True):
        with pytest.raises(OptionError) as error:
            bounds_rate(relative_lr=wrong)
        assert str(error.value) == f"bounds: relative_lr: {wrong!r} is not allowed; give a number from 0"
