"""The integer grid of a tensor: the one place that knows bit arithmetic.

A quantizer means ``value = scale * code`` with integer codes in ``[minimum, maximum]``; the zero point is 0 because
both PAMS and DDTB anchor their grid at zero. Training simulates the grid, export writes it, reports print it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from srq_nni.errors import QuantizationError, did_you_mean

Choice = TypeVar("Choice", bound=str)
MIN_BITS, MAX_BITS = 2, 8
FLOAT_BITS = 32  # "not quantized", as both papers write it
MIN_WIDTH = 1e-5  # smallest upper - lower; below it a bound counts as degenerate


def check_bits(bits: int, *, allow_float: bool = False, name: str = "bits") -> int:
    """Return ``bits`` if it is an integer from 2 to 8 (or 32 where ``allow_float``).

    Raises:
        QuantizationError: for every other value or type.
    """
    whole = isinstance(bits, int) and not isinstance(bits, bool)
    if whole and (MIN_BITS <= bits <= MAX_BITS or (allow_float and bits == FLOAT_BITS)):
        return bits
    floating = f", or {FLOAT_BITS} for floating point" if allow_float else ""
    raise QuantizationError(
        f"{name}: {bits!r} is not a bit width that can be quantized to; "
        f"give an integer from {MIN_BITS} to {MAX_BITS}{floating}"
    )


def choice(name: str, given: Choice, allowed: Sequence[str]) -> Choice:
    """Return ``given`` if it is one of ``allowed``.

    Raises:
        QuantizationError: for every other value, with the nearest right one.
    """
    if given not in allowed:
        raise QuantizationError(
            f"{name}: {given!r} is not known; give one of {', '.join(allowed)}{did_you_mean(given, allowed)}"
        )
    return given


def switch(name: str, given: bool) -> bool:
    """Return ``given`` if it is True or False.

    Raises:
        QuantizationError: for every other value, such as the text "no", which would count as true.
    """
    if not isinstance(given, bool):
        raise QuantizationError(f"{name}: {given!r} is not allowed; give true or false")
    return given


def symmetric_maximum(bits: int) -> int:
    """Return n = 2^(k-1) - 1, the largest code of a symmetric signed grid (127, 7, 3, 1 for 8, 4, 3, 2 bits)."""
    return 2 ** (bits - 1) - 1


def step_count(bits: int) -> int:
    """Return n = 2^k - 1, the number of steps between the bounds of a DDTB grid."""
    return 2**bits - 1


def computable(x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` in the dtype the arithmetic runs in: itself, or float32 for half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def nearest_codes(x: torch.Tensor, *, midrise: bool = False) -> torch.Tensor:
    """Return, in ``x`` itself, the nearest integer of each value, or with ``midrise`` the nearest odd one.

    Args:
        x: values in units of a grid's scale.
        midrise: see ``IntegerGrid``; 0 counts as 1.
    """
    return x.sub_(1).div_(2).round_().mul_(2).add_(1) if midrise else x.round_()


def weight_codes(bits: int, *, symmetric: bool, midrise: bool = False) -> tuple[int, int]:
    """Return smallest and largest code of a weight.

    Args:
        bits: 2 to 8.
        symmetric: -n..n, n = 2^(k-1) - 1 (PAMS), or all 2^k of a signed integer (DDTB).
        midrise: the odd codes from -(2^k - 1) to 2^k - 1 instead; see ``IntegerGrid``.
    """
    if midrise:
        return -step_count(bits), step_count(bits)
    high = symmetric_maximum(bits)
    return (-high if symmetric else -high - 1), high


def largest_bound(dtype: torch.dtype) -> float:
    """Return a magnitude up to which neither upper - lower nor the codes of bounds ``MIN_WIDTH`` apart overflow."""
    return torch.finfo(dtype).max * MIN_WIDTH / 1024


def along_channels(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return ``values``, (C,), in a shape that broadcasts along the first dimension of ``x``; one of 0-d as it is."""
    return values.reshape(-1, *[1] * (x.dim() - 1)) if values.dim() else values


def scale_of(given: Any) -> float | tuple[float, ...]:
    """Return a number, or a tensor of any shape whose entries are scales of channels, as ``IntegerGrid`` takes it."""
    return tuple(given.flatten().tolist()) if isinstance(given, torch.Tensor) and given.dim() else float(given)


@dataclass(frozen=True)
class IntegerGrid:
    """``value = scale * (code - zero_point)`` for integer codes in ``[minimum, maximum]``.

    Attributes:
        scale: positive step between two neighbouring codes, in the unit of the tensor; a tuple has one for each output
            channel, which is the first dimension of a weight.
        minimum, maximum: smallest and largest code.
        zero_point: code of the value 0.
        bits: width that was asked for.
        midrise: only odd codes are levels, so none is 0 and the 2^bits of them lie alike on both sides; two neighbours
            are two scales apart. For weights: zeros that pad an image need a level at 0.
    """

    scale: float | tuple[float, ...]
    minimum: int
    maximum: int
    bits: int
    zero_point: int = 0
    midrise: bool = False

    def __post_init__(self) -> None:
        for scale in self.scale if isinstance(self.scale, tuple) else (self.scale,):
            if not (scale > 0 and scale != float("inf")):
                raise QuantizationError(f"scale: {scale!r} is not allowed; give a positive finite number")
        if not self.minimum <= self.zero_point <= self.maximum:
            raise QuantizationError(
                f"codes from {self.minimum} to {self.maximum} leave out the zero point {self.zero_point}; "
                "give bounds with lower <= 0 <= upper"
            )
        if self.midrise and not (self.minimum % 2 and self.maximum % 2):
            raise QuantizationError(
                f"codes from {self.minimum} to {self.maximum} are no mid-rise grid, whose codes are odd; give odd ends"
            )

    @property
    def levels(self) -> int:
        """Number of different values, at most 2^bits."""
        return (self.maximum - self.minimum) // self.stride + 1

    @property
    def stride(self) -> int:
        """Distance between two neighbouring codes."""
        return 2 if self.midrise else 1

    @property
    def largest_magnitude(self) -> int:
        """max |code|, the factor of the exactness certificate."""
        return max(abs(self.minimum), abs(self.maximum))

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """Return the codes of ``x`` (any shape) as integers held in the dtype of ``x``."""
        nearest = nearest_codes(torch.div(computable(x), self._steps(x)), midrise=self.midrise)
        return nearest.clamp_(self.minimum, self.maximum).to(x.dtype)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """Return ``scale * code`` for each code."""
        return codes * self._steps(codes)

    def _steps(self, x: torch.Tensor) -> float | torch.Tensor:
        if not isinstance(self.scale, tuple):
            return self.scale
        return along_channels(torch.tensor(self.scale, dtype=computable(x).dtype, device=x.device), x)
