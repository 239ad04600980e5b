"""Further losses for a training step that somebody else writes.

A model of BasicSR owns its ``optimize_parameters``: it runs the network, adds up its losses and calls ``backward``. The
losses of a quantizer join through the network's output. It is returned as it is, and when the gradient of the model's
own loss comes back to it, the further losses get the gradient 1, as if they had been summands.
"""

from __future__ import annotations

from typing import Any

import torch


def inject(output: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
    """Return ``output``, such that a backward pass through it also is one through ``loss`` (0-d), once."""
    injected: torch.Tensor = _Inject.apply(output, loss)
    return injected


class _Inject(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        ctx.one = torch.ones_like(loss)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        one, ctx.one = ctx.one, None  # a model may go back twice (GAN); our loss counts once
        return grad, one
