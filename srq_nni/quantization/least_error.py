"""Grids of least error: where a clipped tensor loses less to rounding than it gains in outliers.

Published starts (the largest value, a percentile) ask how far a tensor reaches; at 2 to 4 bits the step that follows
costs more than the values beyond. These searches ask for the grid itself. Nothing here has a gradient or a state.
"""

from __future__ import annotations

import math

import torch

from srq_nni.quantization.calibration import subsample
from srq_nni.quantization.fake_quantize import WEIGHT_EPSILON, ddtb_codes, pams_quantize, straight_through
from srq_nni.quantization.grid import FLOAT_BITS, MIN_WIDTH, computable, nearest_codes, weight_codes

ERROR_POWERS = {"mae": 1, "mse": 2}  # calibration -> power of the error that its bounds make least
CALIBRATION = "mse"  # the default
SEARCH_SUBSAMPLE = 2**16  # elements that the search for PAMS' alpha looks at
SEARCH_STEPS = 40  # its candidates
BINS = 1024  # of the histogram that stands for an activation
FRACTIONS = 20  # candidates a side, in geometric steps
SMALLEST_FRACTION = 0.04
WEIGHT_CANDIDATES = 32  # first guesses of a weight's step
REFINEMENTS = 3
THINNED = 2**13  # elements of a weight that the first guesses look at
SMALLEST_CHANNEL = 2.0**-12  # of the largest step; below, as of a dead channel, its bias in such steps leaves int32


def least_error_bounds(x: torch.Tensor, bits: int, power: int = 2) -> torch.Tensor:
    """Return the (lower, upper) at which ``ddtb_quantize`` has the least mean error on ``x``, as a (2,) tensor.

    The error is that of a histogram of ``BINS`` bins; the candidates are all pairs of ``FRACTIONS`` fractions of the
    smallest and the largest value. A tensor without negative values gets lower = 0, and the other way round.

    Args:
        x: finite tensor with at least one element; above some million elements, thin it before.
        bits: 2 to 8.
        power: 2 for the squared error, 1 for the absolute one, which leaves more outliers beyond the bounds.
    """
    flat = computable(x.detach()).flatten()
    smallest, largest = torch.aminmax(flat)
    low, high = smallest.clamp(max=0), largest.clamp(min=0)
    high = torch.maximum(high, low + MIN_WIDTH)
    width = (high - low) / BINS
    # Not torch.histc, whose edges are numbers: a GPU would be waited for.
    places = torch.div(flat - low, width).long().clamp_(0, BINS - 1)
    counts = torch.zeros(BINS, dtype=flat.dtype, device=flat.device).scatter_add_(0, places, torch.ones_like(flat))
    centres = low + (torch.arange(BINS, dtype=flat.dtype, device=flat.device) + 0.5) * width
    fractions = torch.logspace(math.log10(SMALLEST_FRACTION), 0, FRACTIONS, dtype=flat.dtype, device=flat.device)
    lower, upper = (side.flatten() for side in torch.meshgrid(fractions * low, fractions * high, indexing="ij"))
    step, code_lower, code_upper = (part[:, None] for part in ddtb_codes(lower, upper, bits))
    codes = torch.div(centres, step).round_().clamp_(code_lower, code_upper)
    errors = codes.mul_(step).sub_(centres).abs_().pow_(power) @ counts
    return torch.stack([lower, upper]).index_select(1, errors.argmin().reshape(1)).flatten()


def reconstruction_bound(x: torch.Tensor, bits: int, power: int = 2) -> torch.Tensor:
    """Return, as a (1,) tensor, the alpha that minimises the mean error of ``pams_quantize`` on ``x``.

    The error counts with ``power``: 2 squared, 1 absolute. The candidates are ``SEARCH_STEPS`` equal fractions of
    max|x|.
    """
    flat = subsample(x.detach(), SEARCH_SUBSAMPLE)
    largest = flat.abs().amax()
    candidates = [largest * step / SEARCH_STEPS for step in range(1, SEARCH_STEPS + 1)]
    errors = torch.stack([(pams_quantize(flat, alpha, bits) - flat).abs().pow(power).mean() for alpha in candidates])
    return torch.stack(candidates).index_select(0, errors.argmin().reshape(1))


def least_error_codes(
    weight: torch.Tensor, bits: int, *, symmetric: bool, per_channel: bool = False, midrise: bool = False
) -> tuple[torch.Tensor, int, int]:
    """Return step, smallest and largest code of the grid with the least squared error on a weight.

    From the best of ``WEIGHT_CANDIDATES`` steps the usual alternation goes on: the best step for the present codes, the
    codes for that step; it never makes the error larger.

    Args:
        weight: tensor of any shape.
        bits: 2 to 8.
        symmetric, midrise: see ``weight_codes``.
        per_channel: one step for each output channel, (C,), in place of one in all, 0-d.
    """
    low, high = weight_codes(bits, symmetric=symmetric, midrise=midrise)
    if per_channel:
        return _least_error_steps(computable(weight.detach()).flatten(1), low, high, midrise), low, high
    flat = computable(weight.detach()).flatten()
    if flat.numel() == 0:
        return flat.new_tensor(WEIGHT_EPSILON / high), low, high
    largest = flat.abs().amax() + WEIGHT_EPSILON
    guesses = torch.linspace(1 / WEIGHT_CANDIDATES, 1, WEIGHT_CANDIDATES, dtype=flat.dtype, device=flat.device)
    steps = (guesses * (largest / high))[:, None]
    thin = flat[:: -(-flat.numel() // THINNED)]
    errors = nearest_codes(torch.div(thin, steps), midrise=midrise).clamp_(low, high).mul_(steps).sub_(thin)
    step = steps[:, 0].index_select(0, errors.square_().sum(1).argmin().reshape(1)).reshape(())
    for _ in range(REFINEMENTS):
        codes = nearest_codes(torch.div(flat, step), midrise=midrise).clamp_(low, high)
        product = codes.dot(flat)  # 0 only of zeros, whatever their codes
        step = torch.where(product > 0, product / codes.dot(codes).clamp(min=1), step)
    return step, low, high


def _least_error_steps(rows: torch.Tensor, low: int, high: int, midrise: bool) -> torch.Tensor:
    """As ``least_error_codes`` with each row as a weight of its own; first guesses look at all elements."""
    if rows.numel() == 0:
        return rows.new_full((len(rows),), WEIGHT_EPSILON / high)
    largest = rows.abs().amax(1) + WEIGHT_EPSILON
    guesses = torch.linspace(1 / WEIGHT_CANDIDATES, 1, WEIGHT_CANDIDATES, dtype=rows.dtype, device=rows.device)
    steps = guesses[:, None] * (largest / high)
    errors = torch.stack(
        [
            nearest_codes(torch.div(rows, step), midrise=midrise)
            .clamp_(low, high)
            .mul_(step)
            .sub_(rows)
            .square_()
            .sum(1)
            for step in steps[:, :, None]
        ]
    )
    step = steps.gather(0, errors.argmin(0, keepdim=True))[0]
    for _ in range(REFINEMENTS):
        codes = nearest_codes(torch.div(rows, step[:, None]), midrise=midrise).clamp_(low, high)
        product = (codes * rows).sum(1)
        step = torch.where(product > 0, product / codes.square().sum(1).clamp(min=1), step)
    return step.clamp(min=step.max() * SMALLEST_CHANNEL)


def quantize_weight_least_error(weight: torch.Tensor, bits: int, *, symmetric: bool = False) -> torch.Tensor:
    """Quantize a weight per tensor on the grid of ``least_error_codes``; the gradient is 1 everywhere.

    Clipped weights keep their gradient, since a grid of 2 bits clips many of them.

    Args:
        weight, symmetric: see ``least_error_codes``.
        bits: 2 to 8, or 32 to return ``weight``.
    """
    if bits == FLOAT_BITS:
        return weight
    step, low, high = least_error_codes(weight, bits, symmetric=symmetric)
    quantized = torch.div(computable(weight.detach()), step).round_().clamp_(low, high).mul_(step)
    return straight_through(weight, quantized.to(weight.dtype))
