"""The folders that the option files of basicsr_configs/ name, filled with small crops of photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from srq_nni.errors import DataError

BENCHMARKS = ("Set5", "Set14", "B100", "Urban100")
SCALES = (2, 3, 4)
PHOTOS = 4  # that are taken


def crops_of(photos: Path, size: int) -> dict[str, np.ndarray]:
    """Return the centres of the first photos of a folder: name -> (size, size, 3), BGR, float64 in [0, 1].

    Raises:
        DataError: if there are none, or one is broken or too small.
    """
    if not photos.is_dir():
        raise DataError(f"'{photos}' is not a folder; give one with photos, such as data/photos")
    files = sorted(file for file in photos.iterdir() if file.suffix.lower() in (".png", ".jpg", ".jpeg"))[:PHOTOS]
    if not files:
        raise DataError(f"'{photos}' holds no .png or .jpg; give a folder with photos, such as data/photos")
    crops = {}
    for file in files:
        image = cv2.imread(str(file))
        if image is None:
            raise DataError(f"'{file}' is no image that can be read; remove it from the folder")
        high, wide = image.shape[:2]
        if min(high, wide) < size:
            raise DataError(f"'{file}' has {wide}x{high} pixels; give photos of at least {size}x{size}")
        top, left = min(high // 2, high - size), min(wide // 2, wide - size)
        crops[file.stem] = image[top : top + size, left : left + size].astype(np.float64) / 255
    return crops


def write_pairs(crops: Mapping[str, np.ndarray], high: Path, low: Path, scale: int, suffix: str) -> None:
    """Write crops (BGR, [0, 1]) to ``high`` and their reductions to ``low``, as BasicSR reads pairs."""
    from basicsr.utils.matlab_functions import imresize

    for folder in (high, low):
        folder.mkdir(parents=True, exist_ok=True)
    for name, crop in crops.items():
        cv2.imwrite(str(high / f"{name}.png"), np.round(crop * 255).astype(np.uint8))
        small = np.clip(imresize(crop, 1 / scale), 0, 1)
        cv2.imwrite(str(low / f"{name}{suffix}.png"), np.round(small * 255).astype(np.uint8))


def write_datasets(
    training: Mapping[str, np.ndarray], tested: Mapping[str, np.ndarray], root: Path, scales: Sequence[int] = SCALES
) -> None:
    """Write ``root/datasets``: DIV2K's sub-images, and the four benchmarks with one image each."""
    div2k = root / "datasets" / "DIV2K"
    images = list(tested.items())
    for scale in scales:
        low = div2k / "DIV2K_train_LR_bicubic" / f"X{scale}_sub"
        write_pairs(training, div2k / "DIV2K_train_HR_sub", low, scale, "")
        for number, name in enumerate(BENCHMARKS):
            folder = root / "datasets" / "benchmark" / name
            image = dict([images[number % len(images)]])
            write_pairs(image, folder / "HR", folder / "LR_bicubic" / f"X{scale}", scale, f"x{scale}")
