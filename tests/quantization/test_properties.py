"""What holds for every input: shape, dtype and layout stay, values lie on the grid, nothing becomes NaN."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from srq_nni.functional import (
    ddtb_quantize,
    pams_quantize,
    quantize_weight_max_abs,
    quantize_weight_percentile,
)
from srq_nni.quantization.activation import ActivationQuantizer, DDTBActivation, PAMSActivation
from srq_nni.quantization.weight import DDTBWeight, PAMSWeight

BITS = st.integers(2, 8)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
SHAPES = st.one_of(
    st.sampled_from([(), (0,), (1,), (2, 0, 3), (0, 3, 4, 4), (1, 1, 1, 1)]),
    st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
)
SEEDS = st.integers(0, 10_000)
ANY_BOUND = st.one_of(
    st.floats(-50, 50),
    st.sampled_from([0.0, -0.0, -1.0, 1e-7, 1e-30, 1e4, -1e4]),
)
HUGE = st.sampled_from([1e30, -1e30, 3e38, -3e38, math.inf, -math.inf])
Quantize = Callable[[torch.Tensor], torch.Tensor]


def activations(
    seed: int, shape: tuple[int, ...], dtype: torch.dtype, layout: str, special: list[float]
) -> torch.Tensor:
    """Return normal values times 20, some replaced by ``special``, in a memory layout."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 20
    count = min(len(special), x.numel())
    x.view(-1)[:count] = torch.tensor(special[:count])
    x = x.to(dtype)
    if layout == "channels_last" and x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed" and x.ndim >= 2:
        return x.mT.contiguous().mT
    if layout == "strided" and x.ndim >= 1:
        return x.repeat_interleave(2, dim=-1)[..., ::2]
    return x


LAYOUTS = st.sampled_from(["contiguous", "channels_last", "transposed", "strided"])
FINITE_OR_INFINITE = st.lists(st.sampled_from([0.0, 1.0, -7.5, 6e4, -6e4, math.inf, -math.inf, 1e-40]), max_size=4)
INPUTS = st.builds(activations, SEEDS, SHAPES, DTYPES, LAYOUTS, FINITE_OR_INFINITE)


def assert_well_behaved(x: torch.Tensor, quantize: Quantize, bits: int) -> torch.Tensor:
    x = x.detach().requires_grad_()
    y = quantize(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.is_contiguous() or not x.is_contiguous()
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.isfinite(y).all()
    assert len(y.unique()) <= 2**bits
    y.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.shape == x.shape
    order = x.detach().flatten().argsort()
    assert (y.detach().flatten()[order].diff() >= 0).all()
    return y.detach()


@given(INPUTS, BITS, st.one_of(ANY_BOUND, HUGE))
def test_pams_is_well_behaved(x: torch.Tensor, bits: int, alpha: float) -> None:
    assume(x.dtype != torch.float16 or abs(alpha) <= 1e4)
    bound = torch.tensor([alpha], requires_grad=True)
    assert_well_behaved(x, lambda x: pams_quantize(x, bound, bits), bits)
    assert torch.isfinite(bound.grad).all()


@given(INPUTS, BITS, st.one_of(ANY_BOUND, HUGE), st.one_of(ANY_BOUND, HUGE))
def test_ddtb_is_well_behaved(x: torch.Tensor, bits: int, lower: float, upper: float) -> None:
    assume(x.dtype != torch.float16 or max(abs(lower), abs(upper)) <= 1e4)
    bounds = [torch.tensor([value], requires_grad=True) for value in (lower, upper)]
    assert_well_behaved(x, lambda x: ddtb_quantize(x, *bounds, bits), bits)
    assert all(torch.isfinite(bound.grad).all() for bound in bounds)


@given(SEEDS, st.integers(0, 4), DTYPES, LAYOUTS, BITS, st.booleans())
def test_bounds_per_image_are_well_behaved(
    seed: int, batch: int, dtype: torch.dtype, layout: str, bits: int, crossing: bool
) -> None:
    x = activations(seed, (batch, 3, 4, 2), dtype, layout, [math.inf, -math.inf])
    generator = torch.Generator().manual_seed(seed)
    lower = -20 * torch.rand(batch, 1, 1, 1, generator=generator)
    upper = 20 * torch.rand(batch, 1, 1, 1, generator=generator) - (30 if crossing else 0)
    y = ddtb_quantize(x, lower, upper, bits)
    assert y.shape == x.shape and y.dtype == x.dtype and torch.isfinite(y).all()
    if layout == "channels_last" and batch > 1:
        assert y.is_contiguous(memory_format=torch.channels_last)
    for index in range(batch):
        assert torch.equal(y[index], ddtb_quantize(x[index], lower[index].item(), upper[index].item(), bits))


@given(INPUTS, BITS, st.sampled_from([95.0, 99.0, 100.0]))
def test_weight_quantizers_are_well_behaved(weight: torch.Tensor, bits: int, percentile: float) -> None:
    # float16 cannot hold the code next to an infinite bound.
    assume(weight.dtype != torch.float16 or torch.isfinite(weight).all())
    assert_well_behaved(weight, lambda w: quantize_weight_max_abs(w, bits), bits)
    if weight.numel():
        assume(weight.dtype != torch.float16 or weight.abs().max() < 1e4)
        assert_well_behaved(weight, lambda w: quantize_weight_percentile(w, bits, percentile), bits)


@given(SHAPES, DTYPES, BITS, st.floats(-100, 100, width=16))
def test_constant_inputs_are_well_behaved(shape: tuple[int, ...], dtype: torch.dtype, bits: int, value: float) -> None:
    x = torch.full(shape, value, dtype=dtype)
    assert_well_behaved(x, lambda x: pams_quantize(x, 10.0, bits), bits)
    assert_well_behaved(x, lambda x: ddtb_quantize(x, -10.0, 10.0, bits), bits)
    assert_well_behaved(x, lambda x: quantize_weight_max_abs(x, bits), bits)
    if x.numel():
        y = assert_well_behaved(x, lambda x: quantize_weight_percentile(x, bits), bits)
        # Of a constant, the bounds are MIN_WIDTH apart.
        torch.testing.assert_close(y, x, rtol=1e-2, atol=2e-5)


@given(st.sampled_from([torch.float32, torch.float64]), BITS, SEEDS)
def test_nan_stays_nan_and_spoils_nothing_else(dtype: torch.dtype, bits: int, seed: int) -> None:
    x = activations(seed, (3, 4), dtype, "contiguous", [math.nan, math.inf, 0.0, math.nan])
    for y in (pams_quantize(x, 5.0, bits), ddtb_quantize(x, -2.0, 5.0, bits)):
        assert torch.equal(y.isnan(), x.isnan())


# Idempotence and the grid. Half precision rounds the value itself, so that large codes of it may move.


@given(st.sampled_from([torch.float32, torch.float64]), BITS, SEEDS, st.floats(0.01, 100), st.floats(-1, 0))
def test_quantizing_twice_is_quantizing_once(
    dtype: torch.dtype, bits: int, seed: int, width: float, share: float
) -> None:
    x = activations(seed, (2, 3, 4, 4), dtype, "contiguous", [math.inf])
    lower, upper = share * width, (1 + share) * width
    functions: list[Quantize] = [
        lambda x: pams_quantize(x, width, bits),
        lambda x: ddtb_quantize(x, lower, upper, bits),
        lambda x: ddtb_quantize(x, lower, upper, bits, limit_levels=False),
    ]
    for quantize in functions:
        once = quantize(x)
        assert torch.equal(quantize(once), once)


def module_with_bounds(cls: type[ActivationQuantizer], bits: int, width: float, share: float) -> ActivationQuantizer:
    quantizer = cls(bits).eval()
    if isinstance(quantizer, PAMSActivation):
        nn.init.constant_(quantizer.alpha, width)
    else:
        nn.init.constant_(quantizer.lower, share * width)
        nn.init.constant_(quantizer.upper, (1 + share) * width)
    return quantizer


@given(
    st.sampled_from([PAMSActivation, DDTBActivation]),
    DTYPES,
    st.booleans(),
    BITS,
    SEEDS,
    st.floats(0.01, 100),
    st.floats(-1, 0),
)
def test_the_grid_of_an_activation_is_what_training_simulates(
    cls: type[ActivationQuantizer], dtype: torch.dtype, cast: bool, bits: int, seed: int, width: float, share: float
) -> None:
    quantizer = module_with_bounds(cls, bits, width, share)
    if cast or dtype == torch.float64:
        quantizer.to(dtype)
    x = activations(seed, (2, 3, 4, 4), dtype, "contiguous", [math.inf, -math.inf, 0.0])
    grid, y = quantizer.grid(), quantizer(x).detach()
    codes = grid.codes(x)
    assert codes.dtype == dtype
    assert torch.equal(codes, codes.round()) and codes.min() >= grid.minimum and codes.max() <= grid.maximum
    assert torch.equal(grid.values(codes), y)
    assert grid.levels <= 2**bits and grid.zero_point == 0 and grid.bits == bits
    assert grid.largest_magnitude == max(-grid.minimum, grid.maximum)


@given(st.sampled_from([PAMSWeight, DDTBWeight]), DTYPES, BITS, SEEDS)
def test_the_grid_of_a_weight_is_what_training_simulates(
    cls: type[PAMSWeight | DDTBWeight], dtype: torch.dtype, bits: int, seed: int
) -> None:
    weight = activations(seed, (4, 3, 3, 3), dtype, "contiguous", []) / 100
    quantizer = cls(bits)
    grid = quantizer.grid(weight)
    assert torch.equal(grid.values(grid.codes(weight)), quantizer(weight))
    assert grid.levels <= 2**bits


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_grid_of_a_photograph(bits: int, photographs: torch.Tensor) -> None:
    quantizer = module_with_bounds(PAMSActivation, bits, width=200.0, share=0.0)
    y = quantizer(photographs)
    assert torch.equal(quantizer.grid().values(quantizer.grid().codes(photographs)), y)
    step = 200.0 / (2 ** (bits - 1) - 1)
    inside = photographs <= 200
    assert (y - photographs).abs()[inside].max() <= step / 2 + 1e-4
