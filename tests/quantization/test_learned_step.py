"""A trained factor on the step of a weight: starts as least squared error, has the gradients it states, stays legal."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srq_nni.compression.bounds import RelativeSteps
from srq_nni.compression.optimizer import parameter_groups
from srq_nni.quantization.activation import DDTBActivation
from srq_nni.quantization.layers import attach_quantizer, bounds_of
from srq_nni.quantization.learned_step import LARGEST_LOG_FACTOR, learned_codes, quantize_weight_learned
from srq_nni.quantization.least_error import least_error_codes, quantize_weight_least_error
from srq_nni.quantization.weight import DDTBWeight, GridWeight, PAMSWeight, WeightQuantizer

BITS = (2, 3, 4, 8)
QUANTIZERS = (DDTBWeight, PAMSWeight)


def a_weight(seed: int = 1) -> torch.Tensor:
    return torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_it_starts_on_the_grid_of_least_error(bits: int, symmetric: bool) -> None:
    weight = a_weight()
    started = quantize_weight_learned(weight, bits, torch.zeros(()), symmetric=symmetric)
    assert torch.equal(started, quantize_weight_least_error(weight, bits, symmetric=symmetric))
    started = quantize_weight_learned(weight, bits, torch.zeros(()), symmetric=symmetric, per_channel=True)
    for channel, found in zip(weight, started, strict=True):
        expected = quantize_weight_least_error(channel, bits, symmetric=symmetric)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@given(
    factor=st.floats(0.3, 3.0),
    bits=st.sampled_from(BITS),
    symmetric=st.booleans(),
    per_channel=st.booleans(),
    midrise=st.booleans(),
    seed=st.integers(0, 9),
)
def test_values_and_gradients_are_the_closed_forms(
    factor: float, bits: int, symmetric: bool, per_channel: bool, midrise: bool, seed: int
) -> None:
    weight, log_factor = a_weight(seed).requires_grad_(), torch.tensor(factor).log().requires_grad_()
    upstream = a_weight(seed + 100)
    how = {"symmetric": symmetric, "per_channel": per_channel, "midrise": midrise}
    (quantize_weight_learned(weight, bits, log_factor, **how) * upstream).sum().backward()

    w = weight.detach()
    best, low, high = least_error_codes(w, bits, **how)
    step = best.reshape(-1, 1, 1, 1) * float(log_factor.detach().double().exp())
    codes = 2 * (w / step / 2).floor() + 1 if midrise else (w / step).round()
    y = codes.clamp(low, high) * step
    slope = torch.where((codes < low) | (codes > high), y, y - w)
    found = quantize_weight_learned(w, bits, log_factor.detach(), **how)
    torch.testing.assert_close(found, y, rtol=1e-6, atol=1e-6)
    assert torch.equal(weight.grad, upstream)
    torch.testing.assert_close(log_factor.grad.double(), (slope * upstream).sum(), rtol=1e-4, atol=1e-4)


def test_the_gradient_is_the_slope_of_the_value_where_no_code_changes() -> None:
    weight, at, move = a_weight(), torch.tensor(0.1, dtype=torch.float64), 1e-7

    def clamped_part(log_factor: torch.Tensor) -> torch.Tensor:
        step, low, high = learned_codes(weight, 2, log_factor, symmetric=False)
        codes = (weight / step).round()
        outside = (codes < low) | (codes > high)
        return quantize_weight_learned(weight, 2, log_factor)[outside].sum()

    log_factor = at.clone().requires_grad_()
    clamped_part(log_factor).backward()
    numeric = (clamped_part(at + move) - clamped_part(at - move)) / (2 * move)
    torch.testing.assert_close(log_factor.grad, numeric, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("log_factor", [-0.4, 0.0, 0.7])
@pytest.mark.parametrize("weight_range", ["learned", "learned_per_channel", "learned_midrise"])
def test_the_grid_is_the_one_it_quantizes_to(
    quantizer: type[WeightQuantizer], log_factor: float, weight_range: str
) -> None:
    made = quantizer(4, weight_range=weight_range)
    made.bounds()[0].data.fill_(log_factor)
    weight = a_weight().float()
    grid, codes = made.on_grid(weight)
    torch.testing.assert_close(grid.values(codes), made(weight), rtol=1e-6, atol=1e-6)
    assert grid.levels <= 16
    assert codes.unique().numel() > 4
    assert GridWeight(grid).holds(grid.values(codes))
    assert not GridWeight(grid).holds(grid.values(codes + 0.01))


def test_a_step_of_each_channel_loses_less() -> None:
    """Channels of other sizes, as training leaves them; the step of one tells nothing of another's."""
    weight = a_weight().float() * torch.logspace(-2, 0, 8)[:, None, None, None]
    one, each = DDTBWeight(4, weight_range="learned"), DDTBWeight(4, weight_range="learned_per_channel")
    errors = [float((quantizer(weight) - weight).detach().square().mean()) for quantizer in (one, each)]
    assert errors[1] < 0.7 * errors[0]
    grid = each.grid(weight)
    assert isinstance(grid.scale, tuple)
    assert grid.scale[-1] > 50 * grid.scale[0]
    dead = weight.clone()
    dead[0] = 0
    assert each.grid(dead).scale[0] == pytest.approx(grid.scale[-1] / 4096)
    alone = DDTBWeight(4, weight_range="learned_per_channel").grid(weight[3:4])
    assert alone.scale == (pytest.approx(grid.scale[3], rel=1e-6),)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("bits", range(2, 8))
def test_midrise_levels_are_odd_multiples_of_the_step(quantizer: type[WeightQuantizer], bits: int) -> None:
    """The 2^k levels lie alike on both sides, so a weight and its negative have negative values of each other."""
    weight, made = a_weight(), quantizer(bits, weight_range="learned_midrise")
    grid, codes = made.on_grid(weight)
    assert (grid.minimum, grid.maximum, grid.levels) == (1 - 2**bits, 2**bits - 1, 2**bits)
    assert set(codes.unique().tolist()) <= set(range(1 - 2**bits, 2**bits, 2))
    assert torch.equal(made(-weight), -made(weight))
    assert float(made(torch.cat([weight, torch.zeros(1, 4, 3, 3)]))[-1].detach().unique()) > 0, "0 is no level"


@pytest.mark.parametrize(("bits", "saved"), [(2, 0.21), (3, 0.07), (4, 0.02)])
def test_midrise_levels_lose_less_of_a_normal_distribution_at_few_bits(bits: int, saved: float) -> None:
    """Of codes -2..1 the lowest serves a tail that few weights are in; the more levels, the less one matters."""
    weight = torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(1))
    errors = {
        kind: float((DDTBWeight(bits, weight_range=kind)(weight) - weight).detach().square().mean())
        for kind in ("learned", "learned_midrise")
    }
    assert 1 - errors["learned_midrise"] / errors["learned"] == pytest.approx(saved, abs=0.005)
    # The best uniform quantizer of 4, 8 and 16 levels for a normal distribution: J. Max, Quantizing for Minimum
    # Distortion, 1960, table 2.
    assert errors["learned_midrise"] == pytest.approx({2: 0.1188, 3: 0.03744, 4: 0.01154}[bits], rel=0.04)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_8_bits_have_no_midrise_levels_as_they_would_not_fit_a_byte(quantizer: type[WeightQuantizer]) -> None:
    weight, usual = a_weight(), quantizer(8, weight_range="learned")
    made = quantizer(8, weight_range="learned_midrise")
    assert torch.equal(made(weight), usual(weight)) and made.grid(weight) == usual.grid(weight)


@pytest.mark.parametrize("value", [-1e9, 1e9])
def test_no_factor_is_illegal(value: float) -> None:
    step, _, _ = learned_codes(a_weight(), 2, torch.tensor(value), symmetric=False)
    best, _, _ = least_error_codes(a_weight(), 2, symmetric=False)
    factor = torch.tensor(LARGEST_LOG_FACTOR if value > 0 else -LARGEST_LOG_FACTOR).double().exp()
    torch.testing.assert_close(step, best * factor, rtol=1e-6, atol=0)


def test_an_empty_or_zero_weight_has_a_grid() -> None:
    for weight in (torch.zeros(0, 4, 3, 3), torch.zeros(2, 4, 3, 3), torch.zeros(2, 0, 3, 3)):
        for how in ({}, {"per_channel": True}, {"midrise": True}):
            log_factor = torch.zeros((), requires_grad=True)
            weight = weight.detach().requires_grad_()
            quantize_weight_learned(weight, 2, log_factor, **how).sum().backward()
            assert float(log_factor.grad) == pytest.approx(0, abs=1e-5)


def test_32_bits_return_the_weight() -> None:
    weight = a_weight()
    assert quantize_weight_learned(weight, 32, torch.zeros(())) is weight


def test_its_factor_trains_with_the_bounds_in_relative_steps() -> None:
    """Adam's first step is its learning rate: the factor moves by that part of itself, as a bound does of its width."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3))
    for name in ("0", "1"):
        attach_quantizer(model, name, "weight", DDTBWeight(2, weight_range="learned" if name == "1" else "mse"))
    attach_quantizer(model, "1", "_input_0", DDTBActivation(2))
    groups = parameter_groups(model, 1e-4, 2e-3)
    bounds = bounds_of(model)
    assert [len(group["params"]) for group in groups] == [4, 3, 0]
    assert bounds == groups[1]["params"]
    optimizer = torch.optim.Adam(groups)
    steps = RelativeSteps(model)
    optimizer.register_step_pre_hook(steps.before)
    optimizer.register_step_post_hook(steps.after)
    log_factor = model[1].weight_quantizer.log_factor
    model(20 * torch.rand(1, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    assert abs(float(log_factor.detach())) == pytest.approx(2e-3, rel=1e-3)


def test_only_a_learned_step_is_stored() -> None:
    for learned in (DDTBWeight(2), PAMSWeight(2), DDTBWeight(2, weight_range="learned_per_channel")):
        assert list(learned.state_dict()) == ["log_factor"]
    for other in (DDTBWeight(2, weight_range="mse"), DDTBWeight(2, percentile=99), PAMSWeight(2, weight_range="max")):
        assert not list(other.parameters())
        assert not other.state_dict()
