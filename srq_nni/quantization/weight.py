"""Weight quantizers as modules: the statistics of the weight are taken at every forward.

They have no state of their own, but for the factor of ``weight_range: learned``.
"""

from __future__ import annotations

import torch
from torch import nn

from srq_nni.quantization.fake_quantize import (
    ddtb_codes,
    quantize_weight_max_abs,
    quantize_weight_percentile,
    weight_step_max_abs,
)
from srq_nni.quantization.grid import (
    MAX_BITS,
    IntegerGrid,
    check_bits,
    choice,
    computable,
    switch,
    symmetric_maximum,
)
from srq_nni.quantization.learned_step import learned_codes, quantize_weight_learned
from srq_nni.quantization.least_error import least_error_codes, quantize_weight_least_error
from srq_nni.quantization.percentile import PERCENTILE, check_percentile, implied_by, percentile_bounds

LEARNED, PER_CHANNEL, MIDRISE = "learned", "learned_per_channel", "learned_midrise"
LEAST_ERROR = ("mse", LEARNED, PER_CHANNEL, MIDRISE)  # ranges that start at the step of least squared error


class WeightQuantizer(nn.Module):
    """Return a weight on the grid of its own statistics, with the straight-through gradient.

    Attributes:
        symmetric: of the codes of least squared error, see ``least_error_codes``.
        weight_range: how its step is found.
        log_factor: 0-d parameter, natural logarithm of a trained factor on the step; None if the step is not trained.
    """

    symmetric = False
    log_factor: nn.Parameter | None

    def __init__(self, bits: int, *, weight_range: str) -> None:
        super().__init__()
        self.bits = check_bits(bits)
        self.enabled = True
        self.weight_range = weight_range
        learned = weight_range in (LEARNED, PER_CHANNEL, MIDRISE)
        self.register_parameter("log_factor", nn.Parameter(torch.zeros(())) if learned else None)

    @property
    def per_channel(self) -> bool:
        """Whether each output channel has a step of its own."""
        return self.weight_range == PER_CHANNEL

    @property
    def midrise(self) -> bool:
        """Whether no level is 0; the 2^8 odd codes of 8 bits would not fit a signed byte."""
        return self.weight_range == MIDRISE and self.bits < MAX_BITS

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return ``weight`` (any shape) on its grid, or ``weight`` itself while the quantizer is not ``enabled``."""
        return self.quantize(weight) if self.enabled else weight

    def quantize(self, weight: torch.Tensor) -> torch.Tensor:
        """Return ``weight`` on its grid."""
        raise NotImplementedError

    def grid(self, weight: torch.Tensor) -> IntegerGrid:
        """Return the integer grid on which ``quantize(weight)`` lies."""
        raise NotImplementedError

    def quantize_least_error(self, weight: torch.Tensor) -> torch.Tensor:
        """Return ``weight`` on ``least_error_grid``."""
        if self.log_factor is None:
            return quantize_weight_least_error(weight, self.bits, symmetric=self.symmetric)
        return quantize_weight_learned(weight, self.bits, self.log_factor, **self._kind())

    def least_error_grid(self, weight: torch.Tensor) -> IntegerGrid:
        """Return the grid of least squared error, times the trained factor if there is one."""
        if self.log_factor is None:
            step, low, high = least_error_codes(weight, self.bits, symmetric=self.symmetric)
        else:
            step, low, high = learned_codes(weight, self.bits, self.log_factor, **self._kind())
        scale = tuple(step.tolist()) if self.per_channel else float(step)
        return IntegerGrid(scale, low, high, self.bits, midrise=self.midrise)

    def _kind(self) -> dict[str, bool]:
        return {"symmetric": self.symmetric, "per_channel": self.per_channel, "midrise": self.midrise}

    def on_grid(self, weight: torch.Tensor) -> tuple[IntegerGrid, torch.Tensor]:
        """Return the grid and the codes of ``quantize(weight)``, integers held in the dtype of ``weight``.

        A weight between two codes gets the one that training gave it, which the grid alone would round by itself.
        """
        grid = self.grid(weight)
        return grid, grid.codes(self.quantize(weight))

    def bounds(self) -> list[nn.Parameter]:
        """Return what trains, for the parameter group of the bounds."""
        return [] if self.log_factor is None else [self.log_factor]

    def width(self) -> torch.Tensor:
        """Return the unit of a relative step, 0-d: a logarithm is relative as it is."""
        return torch.ones((), device=None if self.log_factor is None else self.log_factor.device)

    def hold_zero(self) -> None:
        """A weight asks for no bound at zero."""

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class PAMSWeight(WeightQuantizer):
    """Codes -n..n, per tensor as published (PAMS).

    Args:
        bits: 2 to 8.
        weight_range: ``mse`` takes the step of least squared error, ``learned`` trains a factor on it,
            ``learned_per_channel`` trains one on those of the output channels, ``learned_midrise`` one on levels
            without 0 (below 8 bits), ``max`` takes the step of max|w|, as published; ``official`` is ``max`` in the
            released code's order of operations, which decides where two codes are equally near.
    """

    RANGES = (*LEAST_ERROR, "max", "official")
    symmetric = True

    def __init__(self, bits: int, *, weight_range: str = LEARNED) -> None:
        super().__init__(bits, weight_range=choice("weight_range", weight_range, self.RANGES))

    def quantize(self, weight: torch.Tensor) -> torch.Tensor:
        if self.weight_range in LEAST_ERROR:
            return self.quantize_least_error(weight)
        return quantize_weight_max_abs(weight, self.bits, released_order=self.weight_range == "official")

    def grid(self, weight: torch.Tensor) -> IntegerGrid:
        if self.weight_range in LEAST_ERROR:
            return self.least_error_grid(weight)
        n = symmetric_maximum(self.bits)
        return IntegerGrid(float(weight_step_max_abs(computable(weight.detach()), self.bits)), -n, n, self.bits)


class DDTBWeight(WeightQuantizer):
    """2^k codes, per tensor as published (DDTB). Unless ``limit_levels`` is off, they fit a signed byte at 8 bits, too.

    Args:
        bits: 2 to 8.
        percentile: of ``weight_range: percentile``; 100.0 is minimum and maximum, as for RDN; 99 if missing.
        limit_levels: see ``quantize_weight_percentile``.
        weight_range: ``mse`` takes the step of least squared error, ``learned`` trains a factor on it,
            ``learned_per_channel`` trains one on those of the output channels, ``learned_midrise`` one on levels
            without 0 (below 8 bits), ``percentile`` takes the step between percentiles, as published. If missing,
            ``percentile`` with a percentile, else ``learned``.
    """

    RANGES = (*LEAST_ERROR, "percentile")

    def __init__(
        self,
        bits: int,
        *,
        percentile: float | None = None,
        limit_levels: bool = True,
        weight_range: str | None = None,
    ) -> None:
        given = implied_by(percentile, LEARNED) if weight_range is None else weight_range
        super().__init__(bits, weight_range=choice("weight_range", given, self.RANGES))
        self.percentile = check_percentile(PERCENTILE if percentile is None else percentile)
        self.limit_levels = switch("limit_levels", limit_levels)

    def quantize(self, weight: torch.Tensor) -> torch.Tensor:
        if self.weight_range in LEAST_ERROR:
            return self.quantize_least_error(weight)
        limits = {"limit_levels": self.limit_levels, "fit_int8": self.limit_levels}
        return quantize_weight_percentile(weight, self.bits, self.percentile, **limits)

    def grid(self, weight: torch.Tensor) -> IntegerGrid:
        if self.weight_range in LEAST_ERROR:
            return self.least_error_grid(weight)
        lower, upper = percentile_bounds(weight.detach(), self.percentile)
        limits = {"limit_levels": self.limit_levels, "fit_int8": self.limit_levels}
        step, low, high = ddtb_codes(lower, upper, self.bits, **limits)
        return IntegerGrid(float(step), int(low), int(high), self.bits)

    def extra_repr(self) -> str:
        how = f"percentile={self.percentile}" if self.weight_range == "percentile" else self.weight_range
        return f"bits={self.bits}, {how}"


class GridWeight(WeightQuantizer):
    """A weight that lies on a known grid already, such as that of a network whose quantizers were taken out.

    ``quantize`` returns it as it is: another division and multiplication would move it by a rounding.
    """

    TOLERANCE = 1e-3  # in steps; float32 rounding of a product of code and scale is below 1e-5 of a step

    def __init__(self, grid: IntegerGrid) -> None:
        super().__init__(grid.bits, weight_range="fixed")
        self._grid = grid

    def holds(self, weight: torch.Tensor) -> bool:
        """Whether every value of ``weight`` is on the grid, up to float rounding."""
        codes = self._grid.codes(weight)
        tolerated = self._grid.values(torch.full_like(weight, self.TOLERANCE))
        return bool(((weight - self._grid.values(codes)).abs() <= tolerated).all())

    def quantize(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

    def grid(self, weight: torch.Tensor) -> IntegerGrid:
        return self._grid
