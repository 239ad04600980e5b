"""Take the input of a module out of a network's forward pass, for losses on features."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from srq_nni.errors import OptionError, did_you_mean


class InputRecorder:
    """Keeps the first input of module ``name`` of ``model`` from the last forward pass, until it is taken.

    Raises:
        OptionError: if ``model`` has no such module.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        modules = dict(model.named_modules())
        if name not in modules:
            raise OptionError(
                f"feature: the network has no module '{name}'; name its upsampler{did_you_mean(name, modules)}"
            )
        self._feature: torch.Tensor | None = None
        self._name = name
        modules[name].register_forward_pre_hook(self._record)

    def _record(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._feature = args[0]

    def take(self) -> torch.Tensor:
        """Return the feature (N, C, H, W) and forget it."""
        if self._feature is None:
            raise OptionError(f"feature: module '{self._name}' did not run in the forward pass; name one that does")
        feature, self._feature = self._feature, None
        return feature
