"""A weight's grid whose step is trained: a factor on the step of least squared error.

The step of least squared error treats all weights alike; the loss of the network does not. The factor starts at 1, so a
network starts as with ``weight_range: mse``, and its logarithm is what trains: no step of an optimizer makes it
negative or zero, and a learning rate means the same for weights of any size. Per channel, each output channel has a
step of least squared error of its own, and the one factor of the weight scales them all. Mid-rise, the levels lie at
odd multiples of the step and none at 0: of four levels, all serve a distribution that is alike on both sides.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from srq_nni.quantization.grid import FLOAT_BITS, along_channels, computable, nearest_codes
from srq_nni.quantization.least_error import least_error_codes

LARGEST_LOG_FACTOR = 4.0  # 55 times the best step, or a 55th: all weights are 0, or at the ends of the grid


def learned_codes(
    weight: torch.Tensor,
    bits: int,
    log_factor: torch.Tensor,
    *,
    symmetric: bool,
    per_channel: bool = False,
    midrise: bool = False,
) -> tuple[torch.Tensor, int, int]:
    """Return step (0-d, or (C,) per channel; without gradient), smallest and largest code of the grid.

    Args:
        weight, bits, symmetric, per_channel, midrise: see ``least_error_codes``.
        log_factor: 0-d, natural logarithm of the factor; beyond +-``LARGEST_LOG_FACTOR`` it counts as that.
    """
    how = {"symmetric": symmetric, "per_channel": per_channel, "midrise": midrise}
    step, low, high = least_error_codes(weight, bits, **how)
    limited = log_factor.detach().to(step.dtype).clamp(-LARGEST_LOG_FACTOR, LARGEST_LOG_FACTOR)
    return step * limited.exp(), low, high


def quantize_weight_learned(
    weight: torch.Tensor,
    bits: int,
    log_factor: torch.Tensor,
    *,
    symmetric: bool = False,
    per_channel: bool = False,
    midrise: bool = False,
) -> torch.Tensor:
    """Quantize a weight on the grid of ``learned_codes``.

    Gradients with y = step * code: dy/dw = 1 everywhere; dy/dlog_factor = y - w where the code is not clamped, y where
    it is, which is the step times the gradient of a learned step (LSQ, arXiv 1902.08153). The step of least squared
    error counts as a constant.

    Args:
        weight, log_factor, symmetric, per_channel, midrise: see ``learned_codes``.
        bits: 2 to 8, or 32 to return ``weight``.
    """
    if bits == FLOAT_BITS:
        return weight
    how = {"symmetric": symmetric, "per_channel": per_channel, "midrise": midrise}
    step, low, high = learned_codes(weight, bits, log_factor, **how)
    quantized: torch.Tensor = _LearnedStep.apply(weight, log_factor, along_channels(step, weight), low, high, midrise)
    return quantized


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, log_factor: torch.Tensor, step: torch.Tensor, low: int, high: int, midrise: bool
    ) -> torch.Tensor:
        codes = nearest_codes(torch.div(computable(weight), step), midrise=midrise)
        quantized = codes.clamp(low, high)
        clamped = quantized != codes
        quantized.mul_(step)
        ctx.save_for_backward(torch.where(clamped, quantized, quantized - weight), log_factor)
        return quantized.to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        slope, log_factor = ctx.saved_tensors
        return grad, (computable(grad) * slope).sum().to(log_factor.dtype).reshape(log_factor.shape), *[None] * 4
