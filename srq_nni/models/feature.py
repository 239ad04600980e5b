"""Take the input of a module out of a network's forward pass, for losses on features."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import nn

from srq_nni.errors import OptionError, did_you_mean


class _Enough(Exception):  # noqa: N818 - no error: it ends a forward pass whose rest nobody reads
    pass


class InputRecorder:
    """Keeps the first input of module ``name`` of ``model`` from the last forward pass, until it is taken.

    Args:
        model: network.
        name: of the module.
        ends_pass: a forward pass of ``model`` ends there; for a teacher whose output nobody reads. Call ``run``.

    Raises:
        OptionError: if ``model`` has no such module.
    """

    def __init__(self, model: nn.Module, name: str, *, ends_pass: bool = False) -> None:
        modules = dict(model.named_modules())
        if name not in modules:
            raise OptionError(
                f"feature: the network has no module '{name}'; name its upsampler{did_you_mean(name, modules)}"
            )
        self._feature: torch.Tensor | None = None
        self._name, self._model, self._ends_pass = name, model, ends_pass
        modules[name].register_forward_pre_hook(self._record)

    def _record(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._feature = args[0]
        if self._ends_pass:
            raise _Enough

    @torch.no_grad()
    def run(self, *args: Any) -> Any:
        """Run the network without gradients and return its output, or None where the pass ends at the module."""
        with suppress(_Enough):
            return self._model(*args)

    def take(self) -> torch.Tensor:
        """Return the feature (N, C, H, W) and forget it."""
        if self._feature is None:
            raise OptionError(f"feature: module '{self._name}' did not run in the forward pass; name one that does")
        feature, self._feature = self._feature, None
        return feature
