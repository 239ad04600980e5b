"""Training and test images of the demo, from photos that the clone and its dependencies already hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import sklearn.datasets
from basicsr.utils.matlab_functions import imresize
from tqdm import tqdm

PHOTOS = Path(__file__).parent.parent / "data/photos"
SCALE = 2
TILE = 240  # HR pixels
HELD_OUT = ("chelsea", "Wine-by-Jakkub-Mede", "picosdeeuropa-by-Aitzol-Berasategi", "seeding-by-Clements-Engelhardt")


def photos() -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, uint8 RGB image (H, W, 3)) of every photo."""
    for name in ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field"):
        yield name, getattr(skimage.data, name)()
    yield "motorcycle", skimage.data.stereo_motorcycle()[0]
    for name in ("china", "flower"):
        yield name, sklearn.datasets.load_sample_image(f"{name}.jpg")
    for path in sorted(PHOTOS.glob("*.png")):
        yield path.stem, cv2.imread(str(path))[..., ::-1]


def write_pair(folder: Path, name: str, image: np.ndarray) -> None:
    """Write an HR image and its antialiased-bicubic half as ``HR/NAME.png`` and ``LR/NAME.png``."""
    image = image[: image.shape[0] // SCALE * SCALE, : image.shape[1] // SCALE * SCALE, ::-1]
    small = imresize(image.astype(np.float64) / 255, 1 / SCALE)
    small = (small.clip(0, 1) * 255).round().astype(np.uint8)
    for side, pixels in (("HR", image), ("LR", small)):
        (folder / side).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / side / f"{name}.png"), np.ascontiguousarray(pixels))


def prepare(folder: Path) -> None:
    """Write ``folder/train`` (tiles) and ``folder/test`` (four held-out photos, at most 384 pixels a side)."""
    for name, image in tqdm(list(photos()), desc="Preparing photos"):
        if name in HELD_OUT:
            write_pair(folder / "test", name, image[:384, :384])
            continue
        for top in range(0, image.shape[0] - TILE // 2, TILE):
            for left in range(0, image.shape[1] - TILE // 2, TILE):
                tile = image[top : top + TILE, left : left + TILE]
                write_pair(folder / "train", f"{name}_{top}_{left}", tile)
