"""The folder in which the code of the documentation runs: a clone, and what its reader is said to have."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2

from srq_nni.cli.main import main
from srq_nni.models.options import read_options
from tests.conversion.converting import photograph, saved
from tests.conversion.states import released
from tests.docs.pages import blocks, options_in
from tests.sr_data import REPOSITORY, write_photo_folders, write_yaml

CLONE = ("data", "examples", "weights", "benchmarks", "basicsr_configs")
NAME = "NAME"  # as the pages call a run


def fill(folder: Path) -> None:
    """Make in the current, empty folder what the pages assume; takes as long as four iterations of training.

    These are ``my.yml``, ``my_test.yml``, ``my_edsr.yml`` (BasicSR alone), float weights under the names of the pages,
    ``photo.png``, ``my_photos/``, ``edsr_baseline_x4.pt`` and ``model_best.pth.tar`` as the released code writes them,
    ``experiments/NAME/``, and of it ``net_g_latest.pth`` and ``model.onnx``.
    """
    write_photo_folders(folder / "photos")
    for name in ("EDSR_x2_f32b5.pth", "EDSR_Mx4.pth"):
        shutil.copy(REPOSITORY / "weights" / "EDSR_x2_f32b5.pth", folder / name)
    plain = float_options()
    write_yaml(folder / "my_edsr.yml", plain | {"name": "EDSR"})
    options = merged(plain, readme_block())
    options["quantization"]["calibration_iters"] = 2
    write_yaml(folder / "my.yml", options)
    write_yaml(folder / "my_test.yml", scoring_options(options))
    pictures = folder / "my_photos"
    pictures.mkdir()
    for index, path in enumerate(sorted((REPOSITORY / "data" / "photos").glob("*.png"))[:2]):
        cv2.imwrite(str(pictures / f"photo{index}.png"), cv2.imread(str(path))[:72, :96])
    shutil.copy(pictures / "photo0.png", folder / "photo.png")
    saved(released("edsr", None, photograph(), scale=4), folder / "edsr_baseline_x4.pt", wrapped=False)
    saved(released("edsr", "ddtb", photograph(), scale=4), folder / "model_best.pth.tar")
    trained = f"experiments/{NAME}/models/net_g_latest.pth"
    main(["train", "-opt", "my.yml"])
    main(["export", trained, "-o", "model.onnx"])
    shutil.copy(trained, folder / "net_g_latest.pth")


def link(folder: Path) -> None:
    """Put the folders of the clone into ``folder``."""
    for name in CLONE:
        (folder / name).symlink_to(REPOSITORY / name)


def readme_block() -> dict[str, Any]:
    """Return the lines that the README tells its reader to change, so that ``my.yml`` is what comes of it."""
    (block,) = (block for block in blocks(REPOSITORY / "README.md") if block.language == "yaml")
    return options_in(block)


def merged(options: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return options with each changed key in its block."""
    both = {key: merged(options[key], value) for key, value in changes.items() if isinstance(options.get(key), dict)}
    return options | changes | both


def float_options() -> dict[str, Any]:
    """Return a file of BasicSR alone: the demo's network, four iterations on four small photographs."""
    options = read_options(REPOSITORY / "basicsr_configs" / "train" / "train_PAMS_EDSR_x2_demo.yml")
    photos = {"dataroot_gt": "photos/HR", "dataroot_lq": "photos/LR_bicubic/X2", "filename_tmpl": "{}x2"}
    small = {"gt_size": 32, "batch_size_per_gpu": 2, "num_worker_per_gpu": 0, "dataset_enlarge_ratio": 4}
    options["datasets"]["train"] |= photos | small
    options["datasets"]["val"] = {
        "name": "photos",
        "type": "PairedImageDataset",
        **photos,
        "io_backend": {"type": "disk"},
    }
    options["name"] = NAME
    options["model_type"] = "SRModel"
    del options["quantization"], options["path"]["pretrain_network_t"]
    del options["train"]["skt_opt"]
    options["train"]["total_iter"] = 4
    options["val"] = {
        "val_freq": 4,
        "save_img": False,
        "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}},
    }
    options["logger"] |= {"print_freq": 1, "save_checkpoint_freq": 2}
    return options


def scoring_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of ``srq test`` for what ``options`` train."""
    evaluation = {key: value for key, value in options.items() if key not in ("train", "logger")}
    return evaluation | {
        "datasets": {"test": options["datasets"]["val"]},
        "path": {"pretrain_network_g": f"experiments/{NAME}/models/net_g_latest.pth"},
        "val": {"save_img": False, "metrics": options["val"]["metrics"]},
    }
