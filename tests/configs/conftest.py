"""The folders that the option files name, filled with small crops of the repository's photos."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.full_recipe.folders import SCALES, crops_of, write_datasets, write_pairs

PHOTOS = Path(__file__).parents[2] / "data" / "photos"
SIZE = 48  # pixels of a high-resolution crop, a multiple of every scale


@pytest.fixture(scope="session")
def dataset_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``datasets/`` (DIV2K, four benchmarks, at x2 to x4), and ``train/`` and ``test/`` of the demo."""
    root = tmp_path_factory.mktemp("root")
    crops = crops_of(PHOTOS, SIZE)
    write_datasets(crops, crops, root, SCALES)
    for part in ("train", "test"):
        write_pairs(crops, root / part / "HR", root / part / "LR", 2, "")
    stock = root / "datasets" / "Set5"  # the names in BasicSR's own option files
    write_pairs(crops, stock / "GTmod12", stock / "LRbicx2", 2, "")
    return root


@pytest.fixture
def run_folder(work_folder: Path, dataset_root: Path) -> Path:
    """An empty working directory with those folders in it."""
    for name in ("datasets", "train", "test"):
        (work_folder / name).symlink_to(dataset_root / name)
    return work_folder
