"""Grids of least squared error beat every published start on the same tensor, and weights and grids agree."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srq_nni.functional import ddtb_quantize, pams_quantize, quantize_weight_max_abs, quantize_weight_percentile
from srq_nni.quantization.activation import DDTBActivation
from srq_nni.quantization.least_error import (
    least_error_bounds,
    least_error_codes,
    quantize_weight_least_error,
    reconstruction_bound,
)
from srq_nni.quantization.percentile import percentile_bounds
from srq_nni.quantization.weight import DDTBWeight, PAMSWeight, WeightQuantizer

BITS = (2, 3, 4, 8)


def error(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).square().mean())


def features(photographs: torch.Tensor) -> torch.Tensor:
    """What a first convolution with random weights makes of photographs: signed, heavy tails."""
    return torch.nn.Conv2d(3, 16, 3)(photographs).detach()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("relu", [False, True])
def test_bounds_beat_the_percentiles(photographs: torch.Tensor, bits: int, relu: bool) -> None:
    x = features(photographs).relu() if relu else features(photographs)
    found = error(x, ddtb_quantize(x, *least_error_bounds(x, bits), bits))
    for percentile in (95.0, 99.0, 100.0):
        published = error(x, ddtb_quantize(x, *percentile_bounds(x, percentile), bits))
        assert found <= published * 1.02  # candidates are 18 % apart, and at 8 bits a bin is 4 steps wide
    if bits < 4:
        assert found < 0.9 * error(x, ddtb_quantize(x, *percentile_bounds(x, 100.0), bits))


@pytest.mark.parametrize("bits", BITS)
def test_bounds_of_least_absolute_error_let_more_values_lie_beyond(bits: int) -> None:
    """An outlier of a heavy tail counts with its distance there, and with the square of it otherwise."""
    x = torch.randn(2, 8, 32, 32, generator=torch.Generator().manual_seed(bits)) ** 3
    absolute, squared = (least_error_bounds(x, bits, power) for power in (1, 2))
    assert absolute[1] - absolute[0] < squared[1] - squared[0]
    for power, best, other in ((1, absolute, squared), (2, squared, absolute)):
        mine, theirs = ((x - ddtb_quantize(x, *bounds, bits)).abs().pow(power).mean() for bounds in (best, other))
        assert mine <= theirs * 1.001  # bins are finite


@pytest.mark.parametrize("power", [1, 2])
def test_alpha_of_least_error_is_the_best_of_its_candidates(power: int) -> None:
    x = torch.randn(1, 3, 30, 30) * 5
    best = reconstruction_bound(x, 3, power)
    error = (pams_quantize(x, best, 3) - x).abs().pow(power).mean()
    for alpha in torch.linspace(0.1, 1, 10) * x.abs().max():
        assert error <= (pams_quantize(x, alpha, 3) - x).abs().pow(power).mean() * 1.02


def test_bounds_stay_on_their_side_of_zero(photographs: torch.Tensor) -> None:
    x = features(photographs)
    for tensor, lower_is_zero, upper_is_zero in ((x.relu(), True, False), (-x.relu(), False, True), (x, False, False)):
        lower, upper = least_error_bounds(tensor, 4).tolist()
        assert (lower == 0, upper == 0) == (lower_is_zero, upper_is_zero)
        assert tensor.min() <= lower <= 0 <= upper <= tensor.max()


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_constant_has_bounds(value: float) -> None:
    x = torch.full((2, 3, 4, 4), value)
    bounds = least_error_bounds(x, 4)
    assert bounds[0] < bounds[1]
    assert torch.allclose(ddtb_quantize(x, *bounds, 4), x, atol=1e-2)


@given(scale=st.sampled_from([1e-3, 1.0, 255.0]), bits=st.sampled_from(BITS))
def test_bounds_scale_with_the_tensor(scale: float, bits: int) -> None:
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(bits)) * 2
    bounds = least_error_bounds(x * scale, bits)
    assert torch.allclose(bounds, least_error_bounds(x, bits) * scale, rtol=1e-4)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_weight_loses_less_than_on_the_published_grids(bits: int, symmetric: bool) -> None:
    weight = torch.nn.Conv2d(16, 16, 3).weight.detach() * torch.rand(16, 1, 1, 1)
    found = error(weight, quantize_weight_least_error(weight, bits, symmetric=symmetric))
    published = quantize_weight_max_abs(weight, bits) if symmetric else quantize_weight_percentile(weight, bits)
    assert found < error(weight, published)


@pytest.mark.parametrize("bits", BITS)
def test_the_step_is_the_best_one_for_its_codes(bits: int) -> None:
    weight = torch.randn(500, dtype=torch.float64)
    step, low, high = least_error_codes(weight, bits, symmetric=False)
    codes = (weight / step).round().clamp(low, high)
    errors = [error(weight, codes * step * factor) for factor in (0.98, 1.0, 1.02)]
    assert min(errors) == errors[1]
    assert (low, high) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@pytest.mark.parametrize("maker", [PAMSWeight, DDTBWeight])
@pytest.mark.parametrize("bits", BITS)
def test_grid_and_weight_agree(maker: type[WeightQuantizer], bits: int) -> None:
    weight = torch.randn(8, 4, 3, 3).requires_grad_()
    quantizer = maker(bits, weight_range="mse")
    quantized = quantizer(weight)
    grid = quantizer.grid(weight)
    assert torch.equal(quantized, grid.values(grid.codes(weight)))
    assert grid.minimum >= -128 and grid.maximum <= 127
    assert grid.levels == 2**bits - (maker is PAMSWeight)
    quantized.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))  # clipped weights go on training


def test_degenerate_weights_stay_finite() -> None:
    for weight in (torch.zeros(2, 2), torch.zeros(0, 3), torch.tensor([[5.0]])):
        assert torch.isfinite(quantize_weight_least_error(weight, 2)).all()
    assert quantize_weight_least_error(torch.ones(2), 32).tolist() == [1, 1]


@pytest.mark.parametrize(("calibration", "power"), [("mae", 1), ("mse", 2)])
def test_ddtb_starts_at_the_mean_of_its_batches(photographs: torch.Tensor, calibration: str, power: int) -> None:
    quantizer = DDTBActivation(2, calibration=calibration)
    quantizer.set_mode("observe")
    batches = [features(photographs), features(photographs) * 2]
    for batch in batches:
        quantizer(batch)
    assert quantizer.upper.item() == 10.0
    quantizer.set_bounds_from_statistics()
    expected = torch.stack([least_error_bounds(batch, 2, power) for batch in batches]).mean(0)
    assert torch.allclose(torch.cat(quantizer.bounds()).detach(), expected)
