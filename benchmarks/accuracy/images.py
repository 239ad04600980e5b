"""Images of the accuracy benchmark: everything is read once and kept in memory as bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Pair:
    """One image: ``low`` (H, W, 3) and ``high`` (H s, W s, 3), RGB bytes."""

    low: np.ndarray
    high: np.ndarray


def read_pairs(high: Path, low: Path, scale: int) -> list[Pair]:
    """Read ``NAME.png`` of ``high`` with ``NAMEx{scale}.png`` of ``low``; the high side is cropped to whole pixels.

    Raises:
        FileNotFoundError: if a folder has no images, or one of a pair is missing.
    """
    files = sorted(high.glob("*.png"))
    if not files:
        raise FileNotFoundError(f"'{high}' has no .png images; give the folder of shared/data with --data")
    return [_pair(file, low / f"{file.stem}x{scale}.png", scale) for file in files]


def _pair(high: Path, low: Path, scale: int) -> Pair:
    small, large = _read(low), _read(high)
    height, width = (side * scale for side in small.shape[:2])
    return Pair(small, large[:height, :width])


def _read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise FileNotFoundError(f"'{path}' is no image; every image needs its pair")
    return np.ascontiguousarray(image[..., ::-1])


class Patches:
    """Random training patches; which ones an iteration sees follows from (seed, iteration) alone.

    Every image comes once an epoch, in random order, as BasicSR's sampler does it; crops are uniform; horizontal flip,
    vertical flip and transposition have probability 1/2 each.

    Args:
        pairs: images, none smaller than ``patch``.
        scale, patch, batch: scale factor, side of the low patch, patches a batch.
        seed: of order, crops and flips.
    """

    def __init__(self, pairs: list[Pair], scale: int, patch: int, batch: int, seed: int) -> None:
        self._pairs, self._scale, self._patch, self._batch, self._seed = pairs, scale, patch, batch, seed

    def batch(self, iteration: int) -> Batch:
        """Return the batch of an iteration, from 1: ``lq`` (N, 3, P, P) and ``gt`` (N, 3, P s, P s), in [0, 1]."""
        generator = np.random.default_rng([self._seed, iteration])
        first = (iteration - 1) * self._batch
        chosen = [self._pairs[self._image(position)] for position in range(first, first + self._batch)]
        crops = [self._crop(pair, generator) for pair in chosen]
        return {key: _tensor(np.stack([crop[i] for crop in crops])) for i, key in enumerate(("lq", "gt"))}

    def _image(self, position: int) -> int:
        epoch, place = divmod(position, len(self._pairs))
        return int(np.random.default_rng([self._seed, epoch, 0]).permutation(len(self._pairs))[place])

    def _crop(self, pair: Pair, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        top, left = (int(generator.integers(0, side - self._patch + 1)) for side in pair.low.shape[:2])
        low = pair.low[top : top + self._patch, left : left + self._patch]
        top, left, size = top * self._scale, left * self._scale, self._patch * self._scale
        high = pair.high[top : top + size, left : left + size]
        mirrored, upside_down, transposed = generator.integers(0, 2, 3).astype(bool)
        order = slice(None, None, -1 if upside_down else 1), slice(None, None, -1 if mirrored else 1)
        low, high = low[order], high[order]
        return (low.transpose(1, 0, 2), high.transpose(1, 0, 2)) if transposed else (low, high)


def centres(pairs: list[Pair], scale: int, side: int) -> Batch:
    """Return the centre crops of ``side`` low pixels (smaller where an image is) as one batch, for quick validation."""
    lows, highs = [], []
    side = min(side, *(length for pair in pairs for length in pair.low.shape[:2]))
    for pair in pairs:
        top, left = ((length - side) // 2 for length in pair.low.shape[:2])
        lows.append(pair.low[top : top + side, left : left + side])
        top, left, size = top * scale, left * scale, side * scale
        highs.append(pair.high[top : top + size, left : left + size])
    return {"lq": _tensor(np.stack(lows)), "gt": _tensor(np.stack(highs))}


def _tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255


def image_tensor(image: np.ndarray) -> torch.Tensor:
    """Return RGB bytes (H, W, 3) as (1, 3, H, W) in [0, 1]."""
    return _tensor(image[None])


def image_bytes(image: torch.Tensor) -> np.ndarray:
    """Return (3, H, W) in [0, 1] as RGB bytes (H, W, 3): clamped, rounded half to even."""
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
