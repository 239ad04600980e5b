"""The small float EDSR of the repository, photographs of the repository, and one search on them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from srq_nni.search import Budget, SearchResult, search_bits
from srq_nni.search.setup import Problem, problem_from
from tests.sr_data import REPOSITORY, write_yaml

WEIGHTS = REPOSITORY / "weights" / "EDSR_x2_f32b5.pth"
NETWORK = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 32, "num_block": 5, "upscale": 2}
NETWORK |= {"img_range": 255.0, "rgb_mean": [0.4488, 0.4371, 0.4040]}
SIDE = 96  # of the HR images
WIDTHS = (8, 6, 5, 4)


@pytest.fixture(scope="session")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with HR and LR: two crops of each of four photographs, named by photograph and place."""
    from basicsr.utils.matlab_functions import imresize

    root = tmp_path_factory.mktemp("crops")
    for folder in ("HR", "LR"):
        (root / folder).mkdir()
    for file in sorted((REPOSITORY / "data" / "photos").glob("*.png"))[:4]:
        image = cv2.imread(str(file)).astype(np.float64) / 255
        for place, share in (("a", 0.3), ("b", 0.6)):
            top, left = (int((side - SIDE) * share) for side in image.shape[:2])
            crop = image[top : top + SIDE, left : left + SIDE]
            low = np.clip(imresize(crop, 1 / 2), 0, 1)
            for folder, content in (("HR", crop), ("LR", low)):
                cv2.imwrite(str(root / folder / f"{file.stem}_{place}.png"), np.round(content * 255).astype(np.uint8))
    return root


def options_for(crops: Path, quantizer: str = "pams") -> dict[str, Any]:
    """Return the options of a training on the crops."""
    dataset = {"name": "photos", "type": "PairedImageDataset", "io_backend": {"type": "disk"}, "filename_tmpl": "{}"}
    dataset |= {"dataroot_gt": str(crops / "HR"), "dataroot_lq": str(crops / "LR"), "gt_size": 32, "use_hflip": True}
    dataset |= {"use_rot": True, "num_worker_per_gpu": 0, "batch_size_per_gpu": 2}
    return copy.deepcopy(
        {
            "name": "small",
            "model_type": "QuantSRModel",
            "scale": 2,
            "num_gpu": 0,
            "manual_seed": 1,
            "datasets": {"train": dataset},
            "network_g": NETWORK,
            "quantization": {"quantizer": quantizer, "bits": 4, "calibration_iters": 1},
            "path": {"pretrain_network_g": str(WEIGHTS)},
            "train": {
                "optim_g": {"type": "Adam", "lr": 1e-5},
                "scheduler": {"type": "MultiStepLR", "milestones": [4], "gamma": 0.5},
                "total_iter": 2,
                "pixel_opt": {"type": "L1Loss"},
            },
            "logger": {"print_freq": 1, "save_checkpoint_freq": 10, "use_tb_logger": False},
        }
    )


@pytest.fixture
def option_file(crops: Path, tmp_path: Path) -> str:
    return write_yaml(tmp_path / "small.yml", options_for(crops))


@pytest.fixture(scope="session")
def problem(crops: Path, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    cache = tmp_path_factory.mktemp("cache") / "measurements.json"
    return problem_from(options_for(crops), widths=WIDTHS, count=6, size=40, cache=cache)


@pytest.fixture(scope="session")
def within_loss(problem: Problem) -> SearchResult:
    return search_bits(problem, Budget("loss", 0.15))


@pytest.fixture(scope="session")
def within_size(problem: Problem, within_loss: SearchResult) -> SearchResult:
    """A search whose limit is what 5 bits everywhere take; single measurements are those of the other search."""
    return search_bits(problem, Budget("size", within_loss.uniform[5].summary.file_bytes / 1e6))
