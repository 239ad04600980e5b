"""The folders that the option files name, filled with small crops of the repository's photos."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

PHOTOS = Path(__file__).parents[2] / "data" / "photos"
SIZE = 48  # pixels of a high-resolution crop, a multiple of every scale
BENCHMARKS = ("Set5", "Set14", "B100", "Urban100")


def write_pairs(crops: dict[str, np.ndarray], high: Path, low: Path, scale: int, suffix: str) -> None:
    """Write crops (BGR, [0, 1]) to ``high`` and their reductions to ``low``, as BasicSR reads pairs."""
    from basicsr.utils.matlab_functions import imresize

    for folder in (high, low):
        folder.mkdir(parents=True, exist_ok=True)
    for name, crop in crops.items():
        cv2.imwrite(str(high / f"{name}.png"), np.round(crop * 255).astype(np.uint8))
        small = np.clip(imresize(crop, 1 / scale), 0, 1)
        cv2.imwrite(str(low / f"{name}{suffix}.png"), np.round(small * 255).astype(np.uint8))


@pytest.fixture(scope="session")
def dataset_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``datasets/`` (DIV2K sub-images, four benchmarks, at x2, x3 and x4) and the demo's ``train/``."""
    root = tmp_path_factory.mktemp("root")
    crops = {}
    for file in sorted(PHOTOS.glob("*.png"))[:4]:
        image = cv2.imread(str(file)).astype(np.float64) / 255
        top, left = image.shape[0] // 2, image.shape[1] // 2
        crops[file.stem] = image[top : top + SIZE, left : left + SIZE]
    training = root / "datasets" / "DIV2K"
    for scale in (2, 3, 4):
        low = training / "DIV2K_train_LR_bicubic" / f"X{scale}_sub"
        write_pairs(crops, training / "DIV2K_train_HR_sub", low, scale, "")
        for name, crop in zip(BENCHMARKS, crops.items(), strict=True):
            folder = root / "datasets" / "benchmark" / name
            write_pairs(dict([crop]), folder / "HR", folder / "LR_bicubic" / f"X{scale}", scale, f"x{scale}")
    write_pairs(crops, root / "train" / "HR", root / "train" / "LR", 2, "")
    stock = root / "datasets" / "Set5"  # the names in BasicSR's own option files
    write_pairs(crops, stock / "GTmod12", stock / "LRbicx2", 2, "")
    return root


@pytest.fixture
def run_folder(work_folder: Path, dataset_root: Path) -> Path:
    """An empty working directory with those folders in it."""
    for name in ("datasets", "train"):
        (work_folder / name).symlink_to(dataset_root / name)
    return work_folder
