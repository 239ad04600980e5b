"""Another basis of a space, and the parameters on both sides of it that keep what the network computes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from srq_nni.equalization.spaces import Space, Use

State = dict[str, torch.Tensor]
SMALLEST = 1e-2  # a channel below this share of the largest is taken as that


class Rotation(nn.Module):
    """An orthogonal matrix (C, C) that can be turned: ``exp(A) start`` with A = turn - turn.T.

    Args:
        start: (C, C), orthogonal.
    """

    start: torch.Tensor

    def __init__(self, start: torch.Tensor) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.zeros_like(start))
        self.register_buffer("start", start)

    def matrix(self) -> torch.Tensor:
        """Return it as it is turned now."""
        return torch.matrix_exp(self.turn - self.turn.T) @ self.start


class Basis(nn.Module):
    """``new = O diag(exp(stretch)) R old``: with two rotations any invertible matrix, but for a sign; else factors.

    Args:
        stretch: (C,), natural logarithm of the factors, where they start.
        rotations: (C, C) each, orthogonal, R and O where they start; missing where a space has only factors.
    """

    inner: Rotation | None
    outer: Rotation | None

    def __init__(self, stretch: torch.Tensor, rotations: tuple[torch.Tensor, torch.Tensor] | None = None) -> None:
        super().__init__()
        self.stretch = nn.Parameter(stretch.clone())
        self.inner, self.outer = map(Rotation, rotations) if rotations else (None, None)

    def matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (C, C) matrix of the basis and its inverse."""
        factors = self.stretch.exp()
        if self.inner is None or self.outer is None:
            return torch.diag(factors), torch.diag(1 / factors)
        inner, outer = self.inner.matrix(), self.outer.matrix()
        return outer @ (factors[:, None] * inner), inner.T / factors @ outer.T


def balanced(covariance: torch.Tensor) -> Basis:
    """Return the basis of a linear space, with this covariance (C, C), in which rounding is expected to cost least.

    With steps that follow the root mean square of the new channels, and all noise of equal weight, the cost is
    ``sum(c f^2) sum(1 / f^2)`` for components of variance c that are multiplied by f: least at f = c^(-1/4). Then
    the orthonormal DCT-II spreads every component over all channels, so that none has the range of the strongest and
    all come close to a normal distribution.
    """
    variances, components = torch.linalg.eigh(covariance)
    variances, components = variances.flip(0), components.flip(1)
    logarithms = _log_ratios(variances.clamp_min(0).sqrt())
    return Basis(-logarithms / 2, (components.T, _cosines(len(variances)).to(covariance.dtype)))


def evened(largest: torch.Tensor) -> Basis:
    """Return the basis of a space of factors that halves, as logarithms, what the largest values (C,) differ by."""
    return Basis(-_log_ratios(largest) / 2)


def _log_ratios(sizes: torch.Tensor) -> torch.Tensor:
    """Return the natural logarithms of what sizes (C,) have to their geometric mean; the smallest are raised before."""
    logarithms = sizes.clamp_min(SMALLEST * float(sizes.max())).log().nan_to_num(0.0, 0.0, 0.0)
    return logarithms - logarithms.mean()


def _cosines(count: int) -> torch.Tensor:
    """Return the inverse of the orthonormal DCT-II, (count, count)."""
    places = torch.arange(count, dtype=torch.float64)
    spread = torch.cos(math.pi / count * (places[:, None] + 0.5) * places[None, :]) * math.sqrt(2 / count)
    spread[:, 0] /= math.sqrt(2)
    return spread


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
