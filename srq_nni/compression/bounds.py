"""How fast bounds train: the two units of their learning rate."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import nn

from srq_nni.errors import OptionError
from srq_nni.quantization.activation import ActivationQuantizer
from srq_nni.quantization.layers import bounded_quantizers
from srq_nni.quantization.weight import WeightQuantizer

BOUNDS_LEARNING_RATE = 1e-2  # of both papers, in feature units of networks scaled to 255
RELATIVE_LEARNING_RATE = 2e-3  # in widths
LARGEST_STEP = 0.25  # in widths: two bounds that move towards each other leave half of theirs


class RelativeSteps:
    """Lets an optimizer move bounds in units of what they span, so that features of any scale train alike.

    A learning rate in feature units moves a bound by some 17 in 3,000 steps of Adam: nothing where features span
    hundreds, everything where images are in [0, 1]. Here a step of s moves a bound by s times the width of its
    quantizer (alpha; upper - lower; 1 for the logarithm of a weight's factor), at most ``LARGEST_STEP``. So no step can
    make bounds cross, collapse or turn negative, whatever the learning rate; zero stays between them. It has no state:
    the optimizer's is enough.

    Call ``before`` and ``after`` around a step of the optimizer that holds the bounds.

    Args:
        model: network with quantizers, or list of them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before: list[tuple[ActivationQuantizer | WeightQuantizer, torch.Tensor, list[torch.Tensor]]] = []

    @torch.no_grad()
    def before(self, *_: Any) -> None:
        """Remember the bounds and their widths."""
        self._before = [
            (quantizer, quantizer.width().clone(), [bound.clone() for bound in quantizer.bounds()])
            for quantizer in bounded_quantizers(self._model)
        ]

    @torch.no_grad()
    def after(self, *_: Any) -> None:
        """Turn the step that the optimizer made into one of that many widths."""
        for quantizer, width, bounds in self._before:
            moved = False
            for bound, old in zip(quantizer.bounds(), bounds, strict=True):
                step = bound - old
                moved = moved or bound.grad is not None
                bound.copy_(old + width * step.clamp_(-LARGEST_STEP, LARGEST_STEP))
            if moved:
                quantizer.hold_zero()
        self._before = []


def bounds_rate(
    lr: float | None = None, relative_lr: float | None = None, profile: str = "default"
) -> tuple[float, bool]:
    """Return the learning rate of the bounds and whether it is in widths (see ``RelativeSteps``).

    Args:
        lr: in feature units, as in both papers.
        relative_lr: in widths.
        profile: what counts if neither is given: ``RELATIVE_LEARNING_RATE``, or ``BOUNDS_LEARNING_RATE`` with
            ``official``.

    Raises:
        OptionError: if both are given, or one that is no number from 0.
    """
    for name, rate in (("lr", lr), ("relative_lr", relative_lr)):
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < inf):
            raise OptionError(f"bounds: {name}: {rate!r} is not allowed; give a number from 0")
    if lr is not None and relative_lr is not None:
        raise OptionError(f"bounds: lr {lr:g} and relative_lr {relative_lr:g} are both given; give one of them")
    if lr is not None:
        return lr, False
    if relative_lr is None and profile == "official":
        return BOUNDS_LEARNING_RATE, False
    return RELATIVE_LEARNING_RATE if relative_lr is None else relative_lr, True
