"""The demo's side-by-side picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CROP = 64  # pixels


def most_textured_corner(image: np.ndarray) -> tuple[int, int]:
    """Return (top, left) of the crop with the most fine detail, on a coarse raster."""
    grey = image.astype(np.float64).mean(2)
    detail = np.abs(np.diff(grey, axis=0, append=0)) + np.abs(np.diff(grey, axis=1, append=0))
    corners = [
        (top, left)
        for top in range(0, grey.shape[0] - CROP + 1, CROP // 2)
        for left in range(0, grey.shape[1] - CROP + 1, CROP // 2)
    ]
    return max(corners, key=lambda corner: detail[corner[0] :, corner[1] :][:CROP, :CROP].sum())


def draw(images: dict[str, dict[str, np.ndarray]], methods: list[str], path: Path) -> None:
    """Write a PNG with one row a photo and one column a method; images are uint8 BGR (H, W, 3)."""
    columns = ["HR", *methods]
    figure, axes = plt.subplots(
        len(images), len(columns), figsize=(2.3 * len(columns), 2.45 * len(images)), squeeze=False, layout="constrained"
    )
    for index, (name, variants) in enumerate(images.items()):
        top, left = most_textured_corner(variants["HR"])
        for axis, column in zip(axes[index], columns, strict=True):
            crop = variants[column][top : top + CROP, left : left + CROP, ::-1]
            axis.imshow(crop, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if index == 0:
                axis.set_title(column, fontsize=9)
        axes[index, 0].set_ylabel(name.split("-")[0])
    figure.savefig(path, dpi=110)
    plt.close(figure)
