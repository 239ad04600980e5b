"""Percentiles of a tensor, between which DDTB quantizes weights and may start the bounds of activations."""

from __future__ import annotations

import torch

from srq_nni.errors import QuantizationError
from srq_nni.quantization.grid import computable, largest_bound

PERCENTILE = 99.0  # of DDTB for EDSR and SRResNet


def implied_by(percentile: float | None, otherwise: str) -> str:
    """Return how bounds start or weights are ranged where only a percentile is given, or nothing: ``otherwise``."""
    return otherwise if percentile is None else "percentile"


def check_percentile(percentile: float) -> float:
    """Return ``percentile`` if it is above 50 and at most 100.

    Raises:
        QuantizationError: for every other value or type.
    """
    number = isinstance(percentile, (int, float)) and not isinstance(percentile, bool)
    if number and 50.0 < percentile <= 100.0:
        return percentile
    raise QuantizationError(f"percentile: {percentile!r} is not allowed; give a number above 50, up to 100")


def percentile_bounds(x: torch.Tensor, percentile: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (100 - M)-th and M-th percentile of all elements of ``x`` as 0-d tensors, interpolated linearly.

    Raises:
        QuantizationError: if M is not in (50, 100] or ``x`` is empty.
    """
    check_percentile(percentile)
    if x.numel() == 0:
        raise QuantizationError("percentile of an empty tensor is not defined; give at least one element")
    flat = computable(x.detach()).flatten()
    limit = largest_bound(flat.dtype)
    flat = flat.clamp(-limit, limit)
    if percentile == 100.0:
        lower, upper = torch.aminmax(flat)
        return lower, upper
    return _order_statistic(flat, 100.0 - percentile), _order_statistic(flat, percentile)


def _order_statistic(flat: torch.Tensor, percentile: float) -> torch.Tensor:
    """Return one linearly interpolated percentile of a 1-d tensor; sorts only the part beyond it."""
    position = percentile / 100.0 * (flat.numel() - 1)
    below = int(position)
    from_above = percentile > 50.0
    count = flat.numel() - below if from_above else min(below + 2, flat.numel())
    tail = flat.topk(count, largest=from_above).values
    low, high = (tail[-1], tail[-min(count, 2)]) if from_above else (tail[below], tail[-1])
    return (low.double() + (high - low).double() * (position - below)).to(flat.dtype)
