"""Helpers of the BasicSR tests: photographs as folders of pairs, tiny networks, and option files that use them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml

import srq_nni  # noqa: F401  (fills the registries and makes basicsr importable)
from srq_nni.archs.quantized_arch import build_float

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared" / "data"  # pretrained networks and benchmarks that are not part of the repository
CORNERS = {"astronaut": (40, 180), "chelsea": (80, 150), "coffee": (120, 200), "rocket": (60, 280)}
HR_SIZE, SCALE = 96, 2
NETWORK = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "upscale": SCALE}
BLOCK = {"quantizer": "pams", "bits": 4, "calibration_iters": 2}


def write_photo_folders(root: Path) -> Path:
    """Write crops of scikit-image's photographs to ``root/HR`` and, halved, to ``root/LR_bicubic/X2``."""
    from basicsr.utils.matlab_functions import imresize
    from skimage import data

    high, low = root / "HR", root / "LR_bicubic" / "X2"
    high.mkdir(parents=True)
    low.mkdir(parents=True)
    for name, (top, left) in CORNERS.items():
        crop = getattr(data, name)()[top : top + HR_SIZE, left : left + HR_SIZE, ::-1].astype(np.float64) / 255
        cv2.imwrite(str(high / f"{name}.png"), np.round(crop * 255).astype(np.uint8))
        half = np.clip(imresize(crop, 1 / SCALE), 0, 1)
        cv2.imwrite(str(low / f"{name}x2.png"), np.round(half * 255).astype(np.uint8))
    return root


def images(phase: str, folders: Path, **changes: Any) -> dict[str, Any]:
    """Return a ``datasets`` entry for these folders."""
    dataset = {
        "name": "photos",
        "type": "PairedImageDataset",
        "dataroot_gt": str(folders / "HR"),
        "dataroot_lq": str(folders / "LR_bicubic" / "X2"),
        "filename_tmpl": "{}x2",
        "io_backend": {"type": "disk"},
    }
    if phase == "train":
        dataset |= {"gt_size": 32, "use_hflip": True, "use_rot": True}
        dataset |= {"num_worker_per_gpu": 0, "batch_size_per_gpu": 2, "dataset_enlarge_ratio": 2}
    return dataset | changes


def float_checkpoint(path: Path, network: dict[str, Any] = NETWORK, seed: int = 0) -> str:
    """Save a randomly initialised float network as BasicSR does and return the path."""
    torch.manual_seed(seed)
    torch.save({"params": build_float(network).state_dict()}, path)
    return str(path)


def train_options(folders: Path, checkpoint: str) -> dict[str, Any]:
    """Return the options of a training run that takes a second."""
    return copy.deepcopy(
        {
            "name": "tiny",
            "model_type": "QuantSRModel",
            "scale": SCALE,
            "num_gpu": 0,
            "manual_seed": 1,
            "datasets": {"train": images("train", folders), "val": images("val", folders)},
            "network_g": NETWORK,
            "quantization": BLOCK,
            "path": {"pretrain_network_g": checkpoint, "pretrain_network_t": checkpoint},
            "train": {
                "ema_decay": 0.9,
                "optim_g": {"type": "Adam", "lr": 1e-4, "betas": [0.9, 0.999]},
                "scheduler": {"type": "MultiStepLR", "milestones": [4], "gamma": 0.5},
                "total_iter": 6,
                "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
                "skt_opt": {"type": "SKTLoss", "loss_weight": 3.92},
            },
            "val": {
                "val_freq": 6,
                "save_img": False,
                "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}},
            },
            "logger": {"print_freq": 1, "save_checkpoint_freq": 2, "use_tb_logger": False},
        }
    )


def evaluation_options(folders: Path, checkpoint: str) -> dict[str, Any]:
    """Return the options of ``srq test`` that go with ``train_options``."""
    options = train_options(folders, checkpoint)
    for key in ("train", "logger"):
        del options[key]
    options["datasets"] = {"test": images("test", folders)}
    options["path"] = {"pretrain_network_g": checkpoint}
    options["val"] = {"save_img": False, "metrics": options["val"]["metrics"]}
    return options


def write_yaml(path: Path, options: Any) -> str:
    """Write options as YAML and return the path."""
    path.write_text(yaml.safe_dump(options, sort_keys=False))
    return str(path)


def changed(options: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return a copy with ``a:b`` set to ``value``, or removed if ``value`` is the class ``Missing``."""
    options = copy.deepcopy(options)
    *parents, last = key.split(":")
    block = options
    for parent in parents:
        block = block[parent]
    if value is Missing:
        del block[last]
    else:
        block[last] = value
    return options


class Missing:
    """Stands for "this key is not in the file"."""


def batch(folders: Path, *names: str) -> dict[str, torch.Tensor]:
    """Return the named photographs as a batch ``{lq, gt}`` in [0, 1]."""

    def stack(files: list[Path]) -> torch.Tensor:
        pixels = [cv2.imread(str(file))[:, :, ::-1].transpose(2, 0, 1).astype(np.float32) / 255 for file in files]
        return torch.from_numpy(np.stack(pixels))

    low = folders / "LR_bicubic" / "X2"
    return {
        "lq": stack([low / f"{name}x2.png" for name in names]),
        "gt": stack([folders / "HR" / f"{name}.png" for name in names]),
    }
