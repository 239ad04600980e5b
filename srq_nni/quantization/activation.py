"""Activation quantizers as modules: trainable bounds, calibration statistics and the gate, all in the state dict."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import nn

from srq_nni.errors import QuantizationError
from srq_nni.quantization import calibration as statistics
from srq_nni.quantization.fake_quantize import ddtb_codes, ddtb_quantize, pams_quantize
from srq_nni.quantization.gate import Gate, Gradient, Start, Statistics, bound_factors
from srq_nni.quantization.grid import MIN_WIDTH, IntegerGrid, check_bits, choice, computable, switch, symmetric_maximum
from srq_nni.quantization.least_error import CALIBRATION, ERROR_POWERS, least_error_bounds, reconstruction_bound
from srq_nni.quantization.percentile import PERCENTILE, check_percentile, implied_by

Mode = Literal["quantize", "calibrate", "observe", "float"]
MODES: tuple[Mode, ...] = ("quantize", "calibrate", "observe", "float")
NO_CHANNELS = -1
INITIAL_BOUND = 10.0  # in the unit of the activation (grey levels); both papers start there


class ActivationQuantizer(nn.Module):
    """What all activation quantizers share: bits, mode, and the check that a checkpoint has the same bits.

    Modes: ``quantize``; ``calibrate`` (set the bounds from running statistics and quantize, in training);
    ``observe`` (record statistics, return the input); ``float`` (return the input).
    """

    bit_width: torch.Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = check_bits(bits)
        self.mode: Mode = "quantize"
        self.register_buffer("bit_width", torch.tensor(bits))

    def set_mode(self, mode: Mode) -> None:
        """Change the mode.

        Raises:
            QuantizationError: for an unknown mode.
        """
        self.mode = choice("mode", mode, MODES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` (N, ...) on the grid, in its own dtype, or ``x`` itself in the modes that do not quantize."""
        if self.mode == "float":
            return x
        if self.mode == "observe":
            self.observe(x)
            return x
        if self.training:
            if self.mode == "calibrate":
                self.observe(x)
                self.set_bounds_from_statistics()
            self.keep_bounds_legal()
        return self.quantize(x)

    def observe(self, x: torch.Tensor) -> None:
        """Record the statistics of one batch."""
        raise NotImplementedError

    def set_bounds_from_statistics(self) -> None:
        """Set the bounds to what was observed; does nothing before the first batch."""
        raise NotImplementedError

    def keep_bounds_legal(self) -> None:
        """Move bounds that an optimizer step made illegal to the nearest legal value, in place."""
        raise NotImplementedError

    def width(self) -> torch.Tensor:
        """Return what the bounds span, (1,): the unit of a relative step."""
        raise NotImplementedError

    @property
    def released_order(self) -> bool:
        """Whether values are rounded in the order of operations of the released code."""
        raise NotImplementedError

    def hold_zero(self) -> None:
        """Move bounds that left zero out back to it, in place: integers need a code for it."""

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` on the grid of the present bounds."""
        raise NotImplementedError

    def bounds(self) -> list[nn.Parameter]:
        """Return the trainable bounds, for a parameter group of their own."""
        raise NotImplementedError

    def grid(self) -> IntegerGrid:
        """Return the integer grid that ``quantize`` simulates."""
        raise NotImplementedError

    def static_codes(self) -> tuple[float, int, int]:
        """Return (scale, smallest code, largest code) of the bounds themselves, which an applied gate would scale."""
        raise NotImplementedError

    def _shown_mode(self) -> str:
        """Return the mode for ``repr``, where it is not the usual one."""
        return "" if self.mode == "quantize" else f", mode={self.mode}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}bit_width")
        if stored is not None and int(stored) != self.bits:
            errors: list[str] = args[-1]
            name = prefix[:-1] or type(self).__name__
            errors.append(f"{name} was saved with {int(stored)} bits and the network has {self.bits}")
            return
        super()._load_from_state_dict(state_dict, prefix, *args)


class PAMSActivation(ActivationQuantizer):
    """Symmetric quantizer with one trainable maximum ``alpha`` (PAMS, arXiv 2011.04212).

    Args:
        bits: 2 to 8.
        calibration: how a batch proposes alpha. ``mae`` and ``mse``: the alpha with the least absolute and squared
            error, averaged over the batches. ``max``: mean over images of max|x|, averaged over the batches.
            ``official``: as ``max``, but the last batch alone counts, nothing is clamped while calibrating, and all is
            computed in ``released_order``.
    """

    CALIBRATIONS = ("max", "mae", "mse", "official")

    def __init__(self, bits: int, *, calibration: str = CALIBRATION) -> None:
        super().__init__(bits)
        self.calibration = choice("calibration", calibration, self.CALIBRATIONS)
        self.alpha = nn.Parameter(torch.full((1,), INITIAL_BOUND))
        self.statistic = statistics.RunningMean(1)

    @torch.no_grad()
    def observe(self, x: torch.Tensor) -> None:
        statistics.check_finite(x)
        if self.calibration == "official":
            self.statistic.count.zero_()
        if self.calibration in ERROR_POWERS:
            self.statistic.update(reconstruction_bound(x, self.bits, ERROR_POWERS[self.calibration]))
        else:
            self.statistic.update(statistics.mean_sample_maximum(x))

    @torch.no_grad()
    def set_bounds_from_statistics(self) -> None:
        mean = self.statistic.mean.clamp(min=MIN_WIDTH).to(self.alpha)
        self.alpha.copy_(torch.where(self.statistic.count > 0, mean, self.alpha))  # "if" would wait for the device

    @torch.no_grad()
    def keep_bounds_legal(self) -> None:
        self.alpha.clamp_(min=MIN_WIDTH)

    def width(self) -> torch.Tensor:
        return self.alpha

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        clamp = not (self.training and self.mode == "calibrate" and self.released_order)
        return pams_quantize(x, self.alpha, self.bits, clamp=clamp, released_order=self.released_order)

    @property
    def released_order(self) -> bool:
        return self.calibration == "official"

    def bounds(self) -> list[nn.Parameter]:
        return [self.alpha]

    def grid(self) -> IntegerGrid:
        return IntegerGrid(*self.static_codes(), self.bits)

    def static_codes(self) -> tuple[float, int, int]:
        n = symmetric_maximum(self.bits)
        return float(computable(self.alpha.detach()).clamp(min=MIN_WIDTH) / n), -n, n

    def extra_repr(self) -> str:
        return f"bits={self.bits}, alpha={_shown(self.alpha)}{self._shown_mode()}"


class DDTBActivation(ActivationQuantizer):
    """Quantizer with a trainable lower and upper bound and, optionally, a gate (DDTB, arXiv 2203.03844).

    Args:
        bits: 2 to 8.
        calibration: ``mae`` and ``mse`` start the bounds where the absolute and the squared error is least, averaged
            over the batches; ``percentile`` at the percentiles of the observed activations; ``official`` does so at
            2 bits only, from the last batch, and leaves them at +-10 at other widths. If missing, ``percentile`` with a
            percentile, else ``mse``.
        percentile: M of that start; the lower bound takes 100 - M; 99 if missing.
        limit_levels: see ``ddtb_quantize``.
        gate_statistics, gate_gradient: of a gate that is added; see ``gate_quantize``.
        gate_start: of the gate that training adds; see ``Gate``.
    """

    CALIBRATIONS = ("mae", "mse", "percentile", "official")
    channels: torch.Tensor
    gate_is_applied: torch.Tensor

    def __init__(
        self,
        bits: int,
        *,
        calibration: str | None = None,
        percentile: float | None = None,
        limit_levels: bool = True,
        gate_statistics: Statistics = "per_sample",
        gate_gradient: Gradient = "straight_through",
        gate_start: Start = "random",
    ) -> None:
        super().__init__(bits)
        start = implied_by(percentile, CALIBRATION) if calibration is None else calibration
        self.calibration = choice("calibration", start, self.CALIBRATIONS)
        self.gate_statistics: Statistics = choice("gate_statistics", gate_statistics, get_args(Statistics))
        self.gate_gradient: Gradient = choice("gate_gradient", gate_gradient, get_args(Gradient))
        self.gate_start: Start = choice("gate_start", gate_start, get_args(Start))
        self.percentile = check_percentile(PERCENTILE if percentile is None else percentile)
        self.limit_levels = switch("limit_levels", limit_levels)
        self.upper = nn.Parameter(torch.full((1,), INITIAL_BOUND))
        self.lower = nn.Parameter(torch.full((1,), -INITIAL_BOUND))
        self.statistic = statistics.RunningMean(2)
        self.intensity = statistics.IntensityRecorder()
        self.gate: Gate | None = None
        self.gate_share: float | None = None  # of those with the same share that get a gate; None takes the network's
        self.gate_logits: torch.Tensor | None = None
        self._gate_applied = False  # a plain bool, so that forward needs no device synchronisation
        self.register_buffer("gate_is_applied", torch.tensor(False))
        # C of the (N, C, H, W) that observe saw, 0 before, NO_CHANNELS once it saw anything that a gate does not fit.
        self.register_buffer("channels", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.gate_logits = None  # those of an earlier batch must not reach the regulariser
        return super().forward(x)

    def refuse_gate(self) -> None:
        """Say that the channels of the tensor are not axis 1, so that training gives it no gate."""
        self.channels.fill_(NO_CHANNELS)

    def add_gate(self, gate: Gate) -> None:
        """Give this quantizer a gate; until ``apply_gate(True)`` its logits are computed but not used."""
        if self.gate_statistics == "official":  # a gate that was built with options of its own keeps them
            gate.statistics = self.gate_statistics
        if self.gate_gradient == "official":
            gate.gradient = self.gate_gradient
            for part in (gate.reduce, gate.norm):  # no gradient reaches them, which DistributedDataParallel must know
                part.requires_grad_(False)
        self.gate = gate.to(self.upper.device)

    def apply_gate(self, applied: bool) -> None:
        """Let the gate scale the bounds, or stop it. The choice is part of the state dict."""
        if applied and self.gate is None:
            raise QuantizationError("this quantizer has no gate to apply; call add_gate first")
        self._gate_applied = applied
        self.gate_is_applied.fill_(applied)

    @torch.no_grad()
    def observe(self, x: torch.Tensor) -> None:
        statistics.check_finite(x)
        self.intensity.update(*torch.aminmax(x.detach()))
        seen = x.shape[1] if x.ndim == 4 else NO_CHANNELS
        same = (self.channels == 0) | (self.channels == seen)
        self.channels.copy_(torch.where(same, seen, NO_CHANNELS))  # "if" would wait for the device
        if self.calibration == "official":
            self.statistic.count.zero_()
        if self.calibration in ERROR_POWERS:
            power = ERROR_POWERS[self.calibration]
            self.statistic.update(least_error_bounds(statistics.subsample(x), self.bits, power))
        else:
            self.statistic.update(statistics.sampled_percentiles(x, self.percentile))

    @torch.no_grad()
    def set_bounds_from_statistics(self) -> None:
        if self.statistic.count and (self.calibration != "official" or self.bits == 2):
            lower, upper = self.statistic.mean
            self.lower.fill_(lower)
            self.upper.fill_(upper)
            self.keep_bounds_legal()

    @torch.no_grad()
    def keep_bounds_legal(self) -> None:
        self.upper.copy_(torch.maximum(self.upper, self.lower + MIN_WIDTH))

    def width(self) -> torch.Tensor:
        return self.upper - self.lower

    @torch.no_grad()
    def hold_zero(self) -> None:
        self.lower.clamp_(max=0.0)
        self.upper.clamp_(min=0.0)

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        lower: torch.Tensor = self.lower
        upper: torch.Tensor = self.upper
        if self.gate is not None:
            self.gate_logits = self.gate(x)
            if self._gate_applied:
                factors = bound_factors(self.gate_logits).view(-1, 2, 1, 1, 1)
                # Clones: autograd saves the factors of a product, and the next forward changes the bounds in place.
                upper, lower = factors[:, 0] * upper.clone(), factors[:, 1] * lower.clone()
        return ddtb_quantize(x, lower, upper, self.bits, limit_levels=self.limit_levels)

    @property
    def released_order(self) -> bool:
        return not self.limit_levels

    def bounds(self) -> list[nn.Parameter]:
        return [self.lower, self.upper]

    def grid(self) -> IntegerGrid:
        """Return the grid of the static bounds; with an applied gate each image has its own and this is refused."""
        if self._gate_applied:
            raise QuantizationError(
                "a gated quantizer has one grid per image, no constant one; see the unit-scale form"
            )
        return IntegerGrid(*self.static_codes(), self.bits)

    def static_codes(self) -> tuple[float, int, int]:
        lower, upper = computable(self.lower.detach()), computable(self.upper.detach())
        step, low, high = ddtb_codes(lower, upper, self.bits, limit_levels=self.limit_levels)
        return float(step), int(low), int(high)

    def extra_repr(self) -> str:
        gate = "" if self.gate is None else f", gate_applied={self._gate_applied}"
        return f"bits={self.bits}, lower={_shown(self.lower)}, upper={_shown(self.upper)}{gate}{self._shown_mode()}"

    def __getstate__(self) -> dict[str, Any]:
        """Leave the last batch's logits out of copies and pickles: they belong to a graph."""
        return {**self.__dict__, "gate_logits": None}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._gate_applied = bool(self.gate_is_applied)


def _shown(bound: torch.Tensor) -> str:
    return "?" if bound.is_meta else f"{bound.item():.4g}"
