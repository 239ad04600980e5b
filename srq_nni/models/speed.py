"""``train: amp`` and ``train: channels_last``: how fast the forward passes of a training step run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from srq_nni.errors import OptionError, did_you_mean

SPEED_KEYS = ("amp", "channels_last")


@dataclass(frozen=True)
class Speed:
    """Settings of the training forward of student and teacher.

    Attributes:
        amp: dtype of torch.autocast, or None for float32. Parameters, bounds and losses stay float32, and so does
            validation, since the exported network computes in float32.
        channels_last: memory format of weights and images.
    """

    amp: torch.dtype | None = None
    channels_last: bool = False

    def install(self, net: nn.Module) -> None:
        """Let the training forwards of ``net`` run so; call it after all other hooks that belong inside autocast."""
        if self.channels_last:
            net.register_forward_pre_hook(_to_channels_last)
        if self.amp is not None:
            scope = _AutocastScope(self.amp)
            net.register_forward_pre_hook(scope.enter)
            net.register_forward_hook(scope.leave, always_call=True)

    def place(self, net: nn.Module) -> nn.Module:
        """Return ``net`` with its weights in the memory format."""
        return net.to(memory_format=torch.channels_last) if self.channels_last else net


def speed_from(train: Mapping[str, Any]) -> Speed:
    """Read the two keys of a ``train`` block.

    Raises:
        OptionError: for another value than ``bfloat16``, true or false.
    """
    amp, channels_last = train.get("amp"), train.get("channels_last", False)
    if amp not in (None, "bfloat16"):
        raise OptionError(
            f"train: amp: {amp!r} is not allowed; give bfloat16 (float16 would need loss scaling) "
            f"or delete the key{did_you_mean(amp, ['bfloat16'])}"
        )
    if not isinstance(channels_last, bool):
        raise OptionError(f"train: channels_last: {channels_last!r} is not allowed; give true or false")
    return Speed(None if amp is None else torch.bfloat16, channels_last)


def check_speed(opt: Mapping[str, Any], *, quantized: bool) -> None:
    """Check the two keys of the options of a training run; the other models of BasicSR would ignore them."""
    train = opt.get("train") or {}
    for key in SPEED_KEYS:
        if key in train and not quantized:
            raise OptionError(
                f"train: {key}: the key is given but model_type is '{opt['model_type']}', which ignores it; "
                "set model_type: QuantSRModel, or delete the key"
            )
    speed_from(train)


def _to_channels_last(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_channels_last(item) for item in args)


def _channels_last(item: Any) -> Any:
    image = isinstance(item, torch.Tensor) and item.ndim == 4
    return item.contiguous(memory_format=torch.channels_last) if image else item


class _AutocastScope:
    """Two hooks around a forward pass that trains: autocast is on between them, and the result is float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._open: list[torch.autocast] = []

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if module.training and torch.is_grad_enabled():
            device = next(module.parameters()).device.type
            scope = torch.autocast(device, dtype=self._dtype)
            scope.__enter__()
            self._open.append(scope)

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not self._open:
            return output
        self._open.pop().__exit__(None, None, None)
        return output.float() if isinstance(output, torch.Tensor) else output
