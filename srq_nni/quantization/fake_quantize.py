"""Fake quantization: the formulas of both papers as differentiable functions of plain tensors.

Everything rests on one rule, ``y = step * clamp(round(x / step), minimum, maximum)`` with the straight-through
estimator for ``round`` (half to even). PAMS has step = alpha / n and codes -n..n, n = 2^(k-1) - 1; DDTB has
step = (upper - lower) / n, n = 2^k - 1, and codes from round(lower / step). ``float16`` and ``bfloat16`` inputs are
computed in ``float32`` and returned in their own dtype. NaN stays NaN; infinities clamp to the bounds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from srq_nni.errors import QuantizationError
from srq_nni.quantization.grid import (
    FLOAT_BITS,
    MIN_WIDTH,
    check_bits,
    computable,
    largest_bound,
    step_count,
    symmetric_maximum,
)
from srq_nni.quantization.percentile import percentile_bounds

WEIGHT_EPSILON = 1e-8  # PAMS adds it to max|w|, so that an all-zero weight stays finite


def pams_quantize(
    x: torch.Tensor, alpha: torch.Tensor | float, bits: int, *, clamp: bool = True, released_order: bool = False
) -> torch.Tensor:
    """Quantize activations symmetrically with a trainable maximum (PAMS, arXiv 2011.04212).

    ``y = round(clamp(x, -alpha, alpha) n / alpha) alpha / n`` with n = 2^(k-1) - 1, that is 2n + 1 levels.
    Gradients: dy/dx = 1 inside, 0 outside; dy/dalpha = sign(x) outside, round(x n / alpha) / n - x / alpha inside.

    Args:
        x: floating tensor of any shape, in the unit of ``alpha`` (grey levels for networks scaled to 255).
        alpha: positive scalar or tensor that broadcasts to ``x``; values below ``MIN_WIDTH`` count as ``MIN_WIDTH``.
        bits: 2 to 8, or 32 to return ``x``.
        clamp: False leaves ``x`` and its codes unlimited, as the released code does while it calibrates; the
            gradients of the inside then hold everywhere.
        released_order: multiply by n and divide by ``alpha``, as the released code does, instead of dividing by the
            step; where a value lies halfway between two levels, the last bit of that decides.

    Returns:
        Tensor of the shape, dtype and memory format of ``x``.

    Raises:
        QuantizationError: for another bit width or a tensor that is not floating point.
    """
    _check(x, bits)
    if bits == FLOAT_BITS:
        return x
    n = symmetric_maximum(bits)
    upper = _floor(_bound(alpha, x), MIN_WIDTH)
    if not clamp:
        codes = computable(x) * n / upper
        return (_StraightThrough.apply(codes, codes.detach().round(), None) * upper / n).to(x.dtype)
    return _FakeQuantize.apply(x, None, upper, 2 * n, None if released_order else n)


def ddtb_quantize(
    x: torch.Tensor, lower: torch.Tensor | float, upper: torch.Tensor | float, bits: int, *, limit_levels: bool = True
) -> torch.Tensor:
    """Quantize activations between two trainable bounds on a grid anchored at 0 (DDTB, arXiv 2203.03844).

    ``y = step round(clamp(x, lower, upper) / step)`` with step = (upper - lower) / (2^k - 1). Zero is a level and the
    bounds need not be. Gradients, with r = (code - clamp(x) / step) / (2^k - 1): dy/dx = 1 inside, 0 outside;
    dy/dupper = [x > upper] + r; dy/dlower = [x < lower] - r.

    Args:
        x: floating tensor of any shape.
        lower, upper: scalars, or tensors of shape (N, 1, 1, 1) for bounds per image; an ``upper`` closer than
            ``MIN_WIDTH`` to ``lower`` counts as ``lower + MIN_WIDTH``.
        bits: 2 to 8, or 32 to return ``x``.
        limit_levels: clamp the codes to 2^k levels. The released code does not and has 2^k + 1 levels when
            ``upper == -lower``; pass False to repeat its numbers, in its order of operations: where values lie halfway
            between two levels, as all beyond such bounds do, the last bit of a product decides.

    Returns:
        Tensor of the shape, dtype and memory format of ``x``.

    Raises:
        QuantizationError: for another bit width or a tensor that is not floating point.
    """
    _check(x, bits)
    if bits == FLOAT_BITS:
        return x
    n = step_count(bits)
    lower, upper = torch.broadcast_tensors(_bound(lower, x), _bound(upper, x))
    return _FakeQuantize.apply(x, lower, upper, n, n if limit_levels else None)


def quantize_weight_max_abs(weight: torch.Tensor, bits: int, *, released_order: bool = False) -> torch.Tensor:
    """Quantize a weight per tensor to ``round(w n / m) m / n``, m = max|w| + 1e-8 without gradient (PAMS).

    The gradient with respect to ``weight`` is 1 everywhere. Arguments and errors as in ``pams_quantize``.
    """
    _check(weight, bits)
    if bits == FLOAT_BITS:
        return weight
    n = symmetric_maximum(bits)
    w = computable(weight.detach())
    if released_order:
        quantized = _symmetric_as_released(w, _largest_magnitude(w), n)
    else:
        step = weight_step_max_abs(w, bits)
        quantized = torch.div(w, step).round_().clamp_(-n, n).mul_(step)
    return _StraightThrough.apply(weight, quantized.to(weight.dtype), None)


def quantize_weight_percentile(
    weight: torch.Tensor, bits: int, percentile: float = 99.0, *, limit_levels: bool = True, fit_int8: bool = False
) -> torch.Tensor:
    """Quantize a weight per tensor between its own percentiles on the DDTB grid.

    The bounds are the ``percentile``-th and (100 - ``percentile``)-th percentiles, without gradient; the gradient with
    respect to ``weight`` is 1 inside and 0 outside them. 100.0 means minimum and maximum, gradient 1 everywhere
    (RDN in the released code). ``fit_int8`` limits the codes to those of a signed byte, of which 8 bits may need a few
    more on one side; engines take no others for weights. Other arguments and errors as in ``ddtb_quantize``.
    """
    _check(weight, bits)
    if bits == FLOAT_BITS:
        return weight
    w = computable(weight.detach())
    lower, upper = percentile_bounds(w, percentile)
    if limit_levels:
        step, code_lower, code_upper = ddtb_codes(lower, upper, bits, fit_int8=fit_int8)
        quantized = torch.div(w, step).round_().clamp_(*_limits(code_lower, code_upper)).mul_(step)
    else:
        quantized = _as_released(w, lower, upper, step_count(bits))
    inside = None if percentile == 100.0 else (w >= lower) & (w <= upper)
    return _StraightThrough.apply(weight, quantized.to(weight.dtype), inside)


def weight_step_max_abs(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the step (0-d) of ``quantize_weight_max_abs``."""
    return _largest_magnitude(weight) / symmetric_maximum(bits)


def _largest_magnitude(weight: torch.Tensor) -> torch.Tensor:
    """Return max|w| + 1e-8 (0-d), small enough that its product with a code is finite."""
    largest = weight.abs().amax() if weight.numel() else weight.new_zeros(())
    return (largest + WEIGHT_EPSILON).clamp(max=largest_bound(weight.dtype))


def ddtb_codes(
    lower: torch.Tensor, upper: torch.Tensor, bits: int, *, limit_levels: bool = True, fit_int8: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return step, smallest and largest code of the DDTB grid of these bounds (tensors of their shape)."""
    n = step_count(bits)
    step, code_lower, code_upper = _codes(lower, upper, n, n if limit_levels else None)
    return (step, code_lower.clamp(min=-128), code_upper.clamp(max=127)) if fit_int8 else (step, code_lower, code_upper)


def _codes(
    lower: torch.Tensor, upper: torch.Tensor, steps: int, most_steps: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    upper = _apart(lower, upper)
    step = _width(lower, upper) / steps
    if most_steps is None:  # half a code decides between two levels: take the product that the released code takes
        scale = steps / _width(lower, upper)
        code_lower = torch.round(lower * scale)
        return step, code_lower, torch.maximum(torch.round(upper * scale), code_lower)
    code_lower = torch.round(lower / step)
    code_upper = torch.maximum(torch.round(upper / step), code_lower)
    return step, code_lower, torch.minimum(code_upper, code_lower + most_steps)


def _as_released(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, steps: int) -> torch.Tensor:
    """Return ``x`` on the DDTB grid in the order of operations of the released code."""
    upper = _apart(lower, upper)
    scale = steps / _width(lower, upper)
    zero_point = torch.round(scale * lower) + (steps + 1) // 2
    codes = (x.clamp(*_limits(lower, upper)) * scale).sub_(zero_point).round_()
    return codes.add_(zero_point).div_(scale)


def _symmetric_as_released(x: torch.Tensor, largest: torch.Tensor, n: int) -> torch.Tensor:
    """Return ``x`` on the PAMS grid in the order of operations of the released code."""
    codes = x.clamp(*_limits(-largest, largest)).mul_(n).div_(largest).round_()
    return codes.mul_(largest).div_(n)


def _apart(lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """Return ``upper``, at least ``MIN_WIDTH`` above ``lower``."""
    return torch.maximum(upper, lower + MIN_WIDTH)


def _limits(low: torch.Tensor, high: torch.Tensor) -> tuple[Any, Any]:
    """Return the arguments of a clamp: numbers on the CPU, where tensors cost six times as much, tensors elsewhere.

    Elsewhere a number would cost a synchronisation.
    """
    return (low.item(), high.item()) if low.device.type == "cpu" and low.numel() == high.numel() == 1 else (low, high)


def _width(lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    return (upper - lower).clamp(min=MIN_WIDTH)


def _check(x: torch.Tensor, bits: int) -> None:
    check_bits(bits, allow_float=True)
    if not x.is_floating_point():
        raise QuantizationError(f"a tensor of dtype {x.dtype} cannot be quantized; give a floating point tensor")


def _bound(bound: torch.Tensor | float, x: torch.Tensor) -> torch.Tensor:
    """Return a bound as a finite tensor on the device and in the arithmetic dtype of ``x``."""
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    tensor = torch.as_tensor(bound, dtype=dtype, device=x.device)
    limit = largest_bound(dtype)
    # Not a plain clamp: autograd would save the parameter, which the next forward of the same step changes in place.
    tensor = _StraightThrough.apply(tensor, tensor.detach().clamp(-limit, limit), None)
    return tensor.reshape(()) if tensor.numel() == 1 else tensor


def _floor(bound: torch.Tensor, minimum: float) -> torch.Tensor:
    """Clamp from below, but let the gradient through, so that training can lift the bound again."""
    return _StraightThrough.apply(bound, bound.detach().clamp(min=minimum), None)


def straight_through(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return ``value``, whose gradient goes to ``x`` as it is."""
    through: torch.Tensor = _StraightThrough.apply(x, value, None)
    return through


class _StraightThrough(torch.autograd.Function):
    """Return ``value`` in the forward pass; in the backward pass give the gradient to ``x`` where ``mask`` is set."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        ctx.mask = mask
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return (grad if ctx.mask is None else grad * ctx.mask), None, None


class _FakeQuantize(torch.autograd.Function):
    """Both activation quantizers, with the closed-form gradients of the bounds.

    ``lower=None`` means ``-upper``: its share of the gradient then goes to ``upper`` (PAMS). ``most_codes=None`` means
    the order of operations of the released code.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, lower: torch.Tensor | None, upper: torch.Tensor, steps: int, most_codes: int | None
    ) -> torch.Tensor:
        wide = computable(x)
        if lower is None and most_codes is None:
            y = _symmetric_as_released(wide, upper, steps // 2)
        elif lower is None:
            step: torch.Tensor = upper / (steps // 2)
            y = torch.div(wide, step).round_().clamp_(-(steps // 2), steps // 2).mul_(step)
        elif most_codes is None:
            y = _as_released(wide, lower, upper, steps)
        else:
            step, code_lower, code_upper = _codes(lower, upper, steps, most_codes)
            y = torch.div(wide, step).round_().clamp_(*_limits(code_lower, code_upper)).mul_(step)
        y = y.to(x.dtype)
        ctx.save_for_backward(x, y, lower, upper)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, y, lower, upper = ctx.saved_tensors
        wide, wide_grad = computable(x), computable(grad)
        low, high = (-upper, upper) if lower is None else (lower, _apart(lower, upper))
        clamped = wide.clamp(*_limits(low, high))
        side = torch.sub(wide, clamped).sign_()  # -1 below, 0 inside, 1 above
        signed = _inner(wide_grad, side, upper)
        side.abs_()
        error = torch.sub(y, clamped, out=clamped) if y.dtype == clamped.dtype else y - clamped
        rounding = _inner(wide_grad, error, upper)
        if lower is None:
            return _keep_inside(wide_grad, side).to(x.dtype), None, signed + rounding / upper, None, None
        outside = _inner(wide_grad, side, upper)
        rounding = rounding / _width(lower, upper)
        grad_lower, grad_upper = (outside - signed) / 2 - rounding, (outside + signed) / 2 + rounding
        return _keep_inside(wide_grad, side).to(x.dtype), grad_lower, grad_upper, None, None


def _keep_inside(grad: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
    """Return ``grad`` where ``outside`` is 0, and 0 where it is 1; the result takes the memory of ``outside``.

    g - g * 1 and g - g * 0 are exact, and a mask of booleans would cost five times as much on the CPU.
    """
    return torch.addcmul(grad, grad, outside, value=-1, out=outside)


def _inner(a: torch.Tensor, b: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Sum ``a * b`` over all axes along which ``like`` is broadcast."""
    if like.numel() == 1 and a.is_contiguous() and b.is_contiguous():
        return torch.dot(a.view(-1), b.view(-1)).view(like.shape)
    return (a * b).sum_to_size(like.shape)
