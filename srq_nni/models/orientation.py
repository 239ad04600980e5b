"""The eight orientations of an image: flips, transposition, and all that they combine to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways to turn a square over.

    Attributes:
        transposed: height and width change places; done first.
        upside_down: the vertical axis is flipped.
        mirrored: the horizontal axis is flipped.
    """

    transposed: bool = False
    upside_down: bool = False
    mirrored: bool = False

    @classmethod
    def drawn(cls, seed: int, iteration: int) -> Orientation:
        """Return the orientation of an iteration, each equally likely; it follows from the two numbers alone."""
        return cls(*np.random.default_rng([seed, iteration]).integers(0, 2, 3).astype(bool).tolist())

    def turn(self, images: torch.Tensor) -> torch.Tensor:
        """Return ``images`` (N, C, H, W) in this orientation: (N, C, W, H) if transposed."""
        return (images.transpose(-2, -1) if self.transposed else images).flip(self._flipped)

    def turn_back(self, images: torch.Tensor) -> torch.Tensor:
        """Return what ``turn`` turned to this, at any scale."""
        back = images.flip(self._flipped)
        return back.transpose(-2, -1) if self.transposed else back

    @property
    def _flipped(self) -> list[int]:
        return [axis for axis, flipped in ((-2, self.upside_down), (-1, self.mirrored)) if flipped]
