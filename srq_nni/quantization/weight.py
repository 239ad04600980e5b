"""Weight quantizers as modules: no state of their own, the statistics of the weight are taken at every forward."""

from __future__ import annotations

import torch
from torch import nn

from srq_nni.quantization.fake_quantize import (
    check_percentile,
    ddtb_codes,
    percentile_bounds,
    quantize_weight_max_abs,
    quantize_weight_percentile,
    weight_step_max_abs,
)
from srq_nni.quantization.grid import IntegerGrid, check_bits, computable, symmetric_maximum


class WeightQuantizer(nn.Module):
    """Return a weight on the grid of its own statistics, with the straight-through gradient."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = check_bits(bits)
        self.enabled = True

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return ``weight`` (any shape) on its grid, or ``weight`` itself while the quantizer is not ``enabled``."""
        return self.quantize(weight) if self.enabled else weight

    def quantize(self, weight: torch.Tensor) -> torch.Tensor:
        """Return ``weight`` on its grid."""
        raise NotImplementedError

    def grid(self, weight: torch.Tensor) -> IntegerGrid:
        """Return the integer grid on which ``quantize(weight)`` lies."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class PAMSWeight(WeightQuantizer):
    """Per tensor, max-abs (PAMS). Argument: ``bits``, 2 to 8."""

    def quantize(self, weight: torch.Tensor) -> torch.Tensor:
        return quantize_weight_max_abs(weight, self.bits)

    def grid(self, weight: torch.Tensor) -> IntegerGrid:
        n = symmetric_maximum(self.bits)
        return IntegerGrid(float(weight_step_max_abs(computable(weight.detach()), self.bits)), -n, n, self.bits)


class DDTBWeight(WeightQuantizer):
    """Per tensor, between percentiles (DDTB); ``percentile=100.0`` is minimum and maximum, as for RDN.

    Unless ``limit_levels`` is off, as in the released code, all codes fit a signed byte at 8 bits, too.
    """

    def __init__(self, bits: int, *, percentile: float = 99.0, limit_levels: bool = True) -> None:
        super().__init__(bits)
        self.percentile = check_percentile(percentile)
        self.limit_levels = limit_levels

    def quantize(self, weight: torch.Tensor) -> torch.Tensor:
        limits = {"limit_levels": self.limit_levels, "fit_int8": self.limit_levels}
        return quantize_weight_percentile(weight, self.bits, self.percentile, **limits)

    def grid(self, weight: torch.Tensor) -> IntegerGrid:
        lower, upper = percentile_bounds(weight.detach(), self.percentile)
        limits = {"limit_levels": self.limit_levels, "fit_int8": self.limit_levels}
        step, low, high = ddtb_codes(lower, upper, self.bits, **limits)
        return IntegerGrid(float(step), int(low), int(high), self.bits)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, percentile={self.percentile}"


class GridWeight(WeightQuantizer):
    """A weight that lies on a known grid already, such as that of a network whose quantizers were taken out.

    ``quantize`` returns it as it is: another division and multiplication would move it by a rounding.
    """

    TOLERANCE = 1e-3  # in steps; float32 rounding of a product of code and scale is below 1e-5 of a step

    def __init__(self, grid: IntegerGrid) -> None:
        super().__init__(grid.bits)
        self._grid = grid

    def holds(self, weight: torch.Tensor) -> bool:
        """Whether every value of ``weight`` is on the grid, up to float rounding."""
        nearest = self._grid.values(self._grid.codes(weight))
        return bool(((weight - nearest).abs() <= self.TOLERANCE * self._grid.scale).all())

    def quantize(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

    def grid(self, weight: torch.Tensor) -> IntegerGrid:
        return self._grid
