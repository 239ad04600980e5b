"""Gradients against the closed forms of both papers' code, in float64, away from the rounding ties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from srq_nni.functional import (
    ddtb_quantize,
    pams_quantize,
    quantize_weight_max_abs,
    quantize_weight_percentile,
    skt_loss,
)
from srq_nni.quantization.activation import DDTBActivation, PAMSActivation

SEEDS = st.integers(0, 10_000)
BITS = st.integers(2, 8)
TIGHT = {"rtol": 1e-12, "atol": 1e-12}


def random_tensors(seed: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an input (3, 2, 5, 4) and a gradient of its quantized value."""
    generator = torch.Generator().manual_seed(seed)
    x, grad = torch.randn(2, 3, 2, 5, 4, dtype=torch.float64, generator=generator)
    return x * spread, grad


def off_ties(x: torch.Tensor, step: torch.Tensor | float) -> torch.Tensor:
    """Move the elements of ``x`` that are nearly half-way between two codes to the next code."""
    scaled = x / step
    near = ((scaled - scaled.floor()) - 0.5).abs() < 1e-6
    return torch.where(near, scaled.floor() * step, x)


def ddtb_closed_form(
    x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y, dy/dx, dy/dlower and dy/dupper of each element."""
    n = 2**bits - 1
    scale = n / (upper - lower)
    clamped = torch.minimum(torch.maximum(x, lower), upper)
    code = torch.round(scale * clamped)
    residual = (code - scale * clamped) / n
    inside = ((x > lower) & (x < upper)).double()
    return code / scale, inside, (x < lower).double() - residual, (x > upper).double() + residual


@given(SEEDS, BITS, st.floats(0.1, 20))
def test_pams_gradients(seed: int, bits: int, alpha: float) -> None:
    n = 2 ** (bits - 1) - 1
    x, grad = random_tensors(seed, spread=alpha)
    x = off_ties(x, alpha / n).requires_grad_()
    bound = torch.tensor([alpha], dtype=torch.float64, requires_grad=True)
    y = pams_quantize(x, bound, bits)
    y.backward(grad)
    inside = x.detach().abs() < alpha
    each = torch.where(inside, torch.round(x * n / alpha) / n - x / alpha, x.sign()).detach()
    expected = torch.where(inside, torch.round(x * n / alpha) * alpha / n, alpha * x.sign()).detach()
    torch.testing.assert_close(y.detach(), expected, **TIGHT)
    torch.testing.assert_close(x.grad, grad * inside, **TIGHT)
    torch.testing.assert_close(bound.grad, (grad * each).sum().view(1), **TIGHT)


@given(SEEDS, BITS, st.floats(-5, 5), st.floats(0.5, 20))
def test_ddtb_gradients(seed: int, bits: int, low: float, width: float) -> None:
    x, grad = random_tensors(seed, spread=width)
    lower = torch.tensor([low], dtype=torch.float64, requires_grad=True)
    upper = torch.tensor([low + width], dtype=torch.float64, requires_grad=True)
    x = off_ties(x, width / (2**bits - 1)).requires_grad_()
    y = ddtb_quantize(x, lower, upper, bits, limit_levels=False)
    y.backward(grad)
    expected, dx, dlower, dupper = ddtb_closed_form(x.detach(), lower.detach(), upper.detach(), bits)
    # The outermost codes are ties where a bound lies half-way between two codes.
    codes = torch.stack([lower, upper]).detach() * (2**bits - 1) / width
    if ((codes - codes.floor()) - 0.5).abs().min() < 1e-6:
        return
    torch.testing.assert_close(y.detach(), expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(x.grad, grad * dx, **TIGHT)
    torch.testing.assert_close(lower.grad, (grad * dlower).sum().view(1), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(upper.grad, (grad * dupper).sum().view(1), rtol=1e-11, atol=1e-11)


@given(SEEDS, BITS)
def test_ddtb_gradients_of_bounds_per_image(seed: int, bits: int) -> None:
    x, grad = random_tensors(seed, spread=3)
    generator = torch.Generator().manual_seed(seed + 1)
    width = 1 + 3 * torch.rand(3, 1, 1, 1, dtype=torch.float64, generator=generator)
    lower = (-width * torch.rand(3, 1, 1, 1, dtype=torch.float64, generator=generator)).requires_grad_()
    upper = (lower.detach() + width).requires_grad_()
    x = off_ties(x, width / (2**bits - 1))
    ddtb_quantize(x, lower, upper, bits).backward(grad)
    _, _, dlower, dupper = ddtb_closed_form(x, lower.detach(), upper.detach(), bits)
    torch.testing.assert_close(lower.grad, (grad * dlower).sum((1, 2, 3), keepdim=True), **TIGHT)
    torch.testing.assert_close(upper.grad, (grad * dupper).sum((1, 2, 3), keepdim=True), **TIGHT)


class FixedGate(nn.Module):
    """Logits that do not depend on the image."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits


@given(SEEDS, BITS)
def test_gradients_reach_bounds_and_logits_through_the_gate(seed: int, bits: int) -> None:
    x, grad = random_tensors(seed, spread=3)
    logits = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    quantizer = DDTBActivation(bits).double()
    nn.init.constant_(quantizer.lower, -2.3)
    nn.init.constant_(quantizer.upper, 3.1)
    gate = FixedGate(logits)
    quantizer.add_gate(gate)  # type: ignore[arg-type]
    quantizer.apply_gate(True)
    quantizer(x).backward(grad)

    beta = 2 * torch.sigmoid(logits)
    bounds = torch.tensor([3.1, -2.3], dtype=torch.float64)
    own = (beta * bounds).view(3, 2, 1, 1, 1)
    _, _, dlower, dupper = ddtb_closed_form(x, own[:, 1], own[:, 0], bits)
    sums = torch.stack([(grad * each).sum((1, 2, 3)) for each in (dupper, dlower)], dim=1)
    torch.testing.assert_close(quantizer.upper.grad, (beta * sums)[:, 0].sum().view(1), **TIGHT)
    torch.testing.assert_close(quantizer.lower.grad, (beta * sums)[:, 1].sum().view(1), **TIGHT)
    torch.testing.assert_close(gate.logits.grad, bounds * sums * beta * (1 - beta / 2), **TIGHT)


def test_bounds_given_as_numbers_keep_double_precision() -> None:
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)
    low, high = (torch.tensor(value, dtype=x.dtype) for value in (-0.1, 0.7))
    assert torch.equal(pams_quantize(x, 0.7, 8), pams_quantize(x, high, 8))
    assert torch.equal(ddtb_quantize(x, -0.1, 0.7, 8), ddtb_quantize(x, low, high, 8))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bounds_that_cross_send_each_gradient_to_the_nearer_bound(bits: int) -> None:
    x = torch.tensor([-2.0, 0.0, 0.5, 3.0], dtype=torch.float64)
    lower, upper = (torch.tensor(value, dtype=x.dtype, requires_grad=True) for value in (1.0, -1.0))
    ddtb_quantize(x, lower, upper, bits).sum().backward()
    # Each element adds a rounding share of at most half a step.
    share = len(x) / (2 * (2**bits - 1)) + 1e-6
    torch.testing.assert_close(lower.grad, torch.tensor(3.0, dtype=x.dtype), rtol=0, atol=share)
    torch.testing.assert_close(upper.grad, torch.tensor(1.0, dtype=x.dtype), rtol=0, atol=share)


def test_a_degenerate_alpha_can_be_lifted_by_its_gradient() -> None:
    alpha = torch.tensor([-1.0], requires_grad=True)
    pams_quantize(torch.ones(5), alpha, 4).sum().backward()
    torch.testing.assert_close(alpha.grad, torch.tensor([5.0]))


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "strided", "expanded gradient"])
def test_gradients_do_not_depend_on_the_memory_format(layout: str, photographs: torch.Tensor) -> None:
    def gradients(x: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
        x = x.detach().requires_grad_()
        bounds = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (-20.0, 90.0, 100.0)]
        y = ddtb_quantize(x, bounds[0], bounds[1], 4) + pams_quantize(x, bounds[2], 4)
        y.backward(grad)
        return [x.grad, *(bound.grad for bound in bounds)]

    x = photographs.double() - 100
    grad = torch.randn_like(x)
    if layout == "channels_last":
        other, other_grad = x.contiguous(memory_format=torch.channels_last), grad
    elif layout == "transposed":
        other, other_grad = x.mT.contiguous().mT, grad
    elif layout == "strided":
        other, other_grad = x.repeat_interleave(2, dim=3)[..., ::2], grad
    else:
        grad = torch.ones_like(x)
        other, other_grad = x, torch.ones((), dtype=x.dtype).expand_as(x)
    for expected, actual in zip(gradients(x, grad), gradients(other, other_grad), strict=True):
        torch.testing.assert_close(actual, expected, **TIGHT)


@pytest.mark.parametrize("quantize", [lambda x: pams_quantize(x, 1.0, 4), lambda x: quantize_weight_max_abs(x, 4)])
def test_a_second_derivative_is_refused(quantize: object) -> None:
    x = torch.tensor([0.3, 0.5], requires_grad=True)
    (first,) = torch.autograd.grad(quantize(x).square().sum(), x, create_graph=True)  # type: ignore[operator]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_only_input_and_output_are_kept_for_the_backward_pass(photographs: torch.Tensor) -> None:
    x = photographs.clone().requires_grad_()
    kept: list[torch.Tensor] = []
    quantizer = PAMSActivation(4).train()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = quantizer(x)
    assert {tensor.data_ptr() for tensor in kept if tensor.numel() > 1} == {x.data_ptr(), y.data_ptr()}


@pytest.mark.parametrize("cls", [PAMSActivation, DDTBActivation])
def test_autocast_keeps_bounds_and_their_gradients_in_float32(cls: type, photographs: torch.Tensor) -> None:
    conv, quantizer = nn.Conv2d(3, 8, 3), cls(4)

    def gradients() -> list[torch.Tensor]:
        loss = quantizer(conv(photographs / 8)).float().square().mean()
        return list(torch.autograd.grad(loss, [conv.weight, *quantizer.bounds()]))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert quantizer(conv(photographs)).dtype == torch.bfloat16
        half = gradients()
    for actual, expected in zip(half, gradients(), strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weight_gradients(bits: int) -> None:
    weight = torch.randn(6, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(weight)
    masks = {99.0: None, 95.0: None, 100.0: torch.ones_like(weight)}
    for percentile in (99.0, 95.0):
        low, high = torch.quantile(weight.detach(), torch.tensor([1 - percentile / 100, percentile / 100]).double())
        masks[percentile] = ((weight > low) & (weight < high)).double()
    for percentile, mask in masks.items():
        (actual,) = torch.autograd.grad(quantize_weight_percentile(weight, bits, percentile), weight, grad)
        assert torch.equal(actual, grad * mask)
    (actual,) = torch.autograd.grad(quantize_weight_max_abs(weight, bits), weight, grad)
    assert torch.equal(actual, grad)


def test_skt_gradient_agrees_with_finite_differences() -> None:
    student, teacher = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda feature: skt_loss(feature, teacher), student.requires_grad_())
