"""DDTB's dynamic gate: a tiny 2-bit network that rescales both bounds for each image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from srq_nni.errors import QuantizationError
from srq_nni.quantization.fake_quantize import ddtb_quantize, quantize_weight_max_abs, weight_step_max_abs
from srq_nni.quantization.grid import IntegerGrid, symmetric_maximum

GATE_BITS = 2
HIDDEN = 32
NEUTRAL = 0.01  # of the size of random weights: logits of some thousandths, which training can still turn over

Statistics = Literal["per_sample", "official"]
Gradient = Literal["straight_through", "official"]
Start = Literal["neutral", "random"]


def gate_quantize(
    x: torch.Tensor, *, statistics: Statistics = "per_sample", gradient: Gradient = "straight_through"
) -> torch.Tensor:
    """Quantize an input of the gate to 2 bits between its own minimum and maximum, on the grid anchored at 0.

    Args:
        x: (N, C, 1, 1).
        statistics: ``per_sample`` takes minimum and maximum of each image, so that an image's gate does not depend on
            the others in the batch. ``official`` takes them over the whole tensor and does not limit the level count.
        gradient: ``straight_through`` passes the gradient; ``official`` stops it, as the released code does.
    """
    values = x.detach()
    axes = tuple(range(1, x.ndim)) if statistics == "per_sample" else tuple(range(x.ndim))
    lower, upper = values.amin(axes, keepdim=True), values.amax(axes, keepdim=True)
    source = x if gradient == "straight_through" else values
    return ddtb_quantize(source, lower, upper, GATE_BITS, limit_levels=statistics == "per_sample")


class Gate(nn.Module):
    """``logits = conv(Q(relu(BN(conv(Q(mean_hw(x)))))))``; the bounds of an image are scaled by ``2 sigmoid(logits)``.

    Both 1x1 convolutions have ternary (2-bit max-abs) weights and no bias. No gradient flows into ``x``.

    Args:
        channels: C of the activations (N, C, H, W).
        statistics, gradient: see ``gate_quantize``. With the defaults every parameter of the gate gets a gradient and,
            in eval mode, an image's output does not depend on its batch.
        start: ``neutral`` begins with so small weights of ``expand`` that the bounds stay almost what they are.
            ``random`` begins with the weights that a convolution starts from, as the released code does; the logits are
            then some tenths, and each bound of an image is off by half as much of itself.
    """

    def __init__(
        self,
        channels: int,
        *,
        statistics: Statistics = "per_sample",
        gradient: Gradient = "straight_through",
        start: Start = "random",
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, HIDDEN, 1, bias=False)
        self.norm = nn.BatchNorm2d(HIDDEN)
        self.expand = nn.Conv2d(HIDDEN, 2, 1, bias=False)
        if start == "neutral":
            with torch.no_grad():
                self.expand.weight.mul_(NEUTRAL)
        self.statistics: Statistics = statistics
        self.gradient: Gradient = gradient
        self.grids: dict[str, IntegerGrid] | None = None  # of weights that lie on their grids already

    def weight_grid(self, part: Literal["reduce", "expand"]) -> IntegerGrid:
        """Return the grid of the weight of a convolution."""
        if self.grids is not None:
            return self.grids[part]
        n = symmetric_maximum(GATE_BITS)
        step = weight_step_max_abs(self.get_parameter(f"{part}.weight").detach(), GATE_BITS)
        return IntegerGrid(float(step), -n, n, GATE_BITS)

    def quantized_weight(self, part: Literal["reduce", "expand"]) -> torch.Tensor:
        """Return the ternary weight of a convolution."""
        weight = self.get_parameter(f"{part}.weight")
        return weight if self.grids is not None else quantize_weight_max_abs(weight, GATE_BITS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, 2), upper bound first, of activations (N, C, H, W).

        Raises:
            QuantizationError: if ``x`` is not four-dimensional.
        """
        if x.ndim != 4:
            raise QuantizationError(
                f"a gate does not fit a tensor of shape {tuple(x.shape)}; give (N, C, H, W), or train without "
                "this gate (dynamic_ratio: 0)"
            )
        with torch.autocast(x.device.type, enabled=False):
            pooled = x.detach().to(self.reduce.weight.dtype).mean((2, 3), keepdim=True)
            hidden = F.conv2d(self._quantize(pooled), self.quantized_weight("reduce"))
            hidden = F.relu(self._normalise(hidden))
            logits = F.conv2d(self._quantize(hidden), self.quantized_weight("expand"))
        return logits.flatten(1)

    def _quantize(self, x: torch.Tensor) -> torch.Tensor:
        return gate_quantize(x, statistics=self.statistics, gradient=self.gradient)

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the batch norm; a batch of one image has no variance, so it is normalised as in eval mode."""
        if self.training and x.shape[0] == 1:
            norm = self.norm
            return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
        return self.norm(x)

    def extra_repr(self) -> str:
        return f"bits={GATE_BITS}, statistics={self.statistics}, gradient={self.gradient}"


def bound_factors(logits: torch.Tensor) -> torch.Tensor:
    """Return beta = 2 sigmoid(logits) in (0, 2); zero logits leave the bounds as they are."""
    return 2 * torch.sigmoid(logits)
