"""Another basis of a space, and the parameters on both sides of it that keep what the network computes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from srq_nni.equalization.spaces import Freedom, Space, Use

State = dict[str, torch.Tensor]


class Basis(nn.Module):
    """``new = diag(exp(stretch)) R old``: R is a rotation in linear spaces, missing where only factors are allowed.

    Args:
        space: what it is of.
        rotation: (C, C), orthogonal, where it starts; ignored in a space of positive factors.
        stretch: (C,), natural logarithm of the factors, where they start.
    """

    start: torch.Tensor

    def __init__(self, space: Space, rotation: torch.Tensor, stretch: torch.Tensor) -> None:
        super().__init__()
        self.stretch = nn.Parameter(stretch.clone())
        self.turn = nn.Parameter(torch.zeros_like(rotation)) if space.freedom == Freedom.LINEAR else None
        self.register_buffer("start", rotation)

    def matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (C, C) matrix of the basis and its inverse."""
        factors = self.stretch.exp()
        if self.turn is None:
            return torch.diag(factors), torch.diag(1 / factors)
        rotation = torch.matrix_exp(self.turn - self.turn.T) @ self.start
        return factors[:, None] * rotation, rotation.T / factors


def balanced_rotation(covariance: torch.Tensor) -> torch.Tensor:
    """Return an orthogonal matrix (C, C) that spreads every principal component of a covariance over all channels.

    So no channel has the range of the strongest component and all come close to a normal distribution. The spread is
    that of the orthonormal DCT-II.
    """
    _, components = torch.linalg.eigh(covariance)
    count = covariance.shape[0]
    places = torch.arange(count, dtype=covariance.dtype)
    spread = torch.cos(math.pi / count * (places[None, :] + 0.5) * places[:, None]) * math.sqrt(2 / count)
    spread[0] /= math.sqrt(2)
    return spread.T @ components.flip(1).T


def in_bases(state: Mapping[str, torch.Tensor], spaces: Sequence[Space], bases: Sequence[Basis]) -> State:
    """Return the parameters of the same network with its spaces in other bases; differentiable in the bases.

    Args:
        state: name -> parameter of the network as it is.
        spaces, bases: one basis for each space.
    """
    changed = dict(state)
    for space, basis in zip(spaces, bases, strict=True):
        matrix, inverse = basis.matrices()
        for use in space.uses:
            _change(changed, use, matrix, inverse)
    return changed


def _change(state: State, use: Use, matrix: torch.Tensor, inverse: torch.Tensor) -> None:
    weight, bias = f"{use.module}.weight", f"{use.module}.bias"
    given, count = state[weight], matrix.shape[0]
    if use.side == "columns":
        own = given[:, use.offset : use.offset + count]
        turned = torch.einsum("ac...,cb->ab...", own, inverse)
        state[weight] = torch.cat((given[:, : use.offset], turned, given[:, use.offset + count :]), 1)
        return
    if use.side == "factors":
        state[weight] = given * matrix.diagonal()
    else:
        state[weight] = torch.einsum("ab,b...->a...", matrix, given)
    if bias in state:
        state[bias] = matrix @ state[bias]
