"""Shrinking an option file, by ``--force_yml`` alone, to a run of a second."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import basicsr.utils.logger
import torch

from srq_nni.archs.quantized_arch import build_float
from srq_nni.cli.main import main
from srq_nni.models.options import apply_override, read_options

SIZES = {
    "EDSR": {"num_feat": 8, "num_block": 1},
    "RDN": {"num_feat": 4, "num_block": 1, "num_layer": 2, "num_grow_ch": 4},
    "SRResNet": {"num_feat": 8, "num_block": 1},
}


def small_network(options: dict[str, Any]) -> list[str]:
    """Return overrides that make the network of these options small."""
    sizes = SIZES[options["network_g"]["type"]]
    return ["num_gpu=0", *(f"network_g:{key}={value}" for key, value in sizes.items())]


def small_training(options: dict[str, Any]) -> list[str]:
    """Return overrides that train for two iterations on crops of 24 pixels and validate."""
    train = "datasets:train:"
    overrides = [f"{train}gt_size=24", f"{train}batch_size_per_gpu=2", f"{train}num_worker_per_gpu=0"]
    overrides += ["logger:print_freq=1", "logger:save_checkpoint_freq=2", "logger:use_tb_logger=false"]
    overrides += ["val:val_freq=2"] * ("val" in options)
    overrides += ["train:equalize_iter=2"] * ("equalize_iter" in options["train"])
    return [*small_network(options), *overrides, "train:total_iter=2"]


def write_float_weights(options: dict[str, Any], overrides: list[str]) -> None:
    """Write random float weights of the shrunk network where the options expect the pretrained ones."""
    for override in overrides:
        apply_override(options, override)
    file = Path(options["path"]["pretrain_network_g"])
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save({"params": build_float(options["network_g"]).state_dict()}, file)


def run(command: str, path: str | Path, overrides: list[str], *flags: str) -> str:
    """Run ``srq train`` or ``srq test`` in this process; return its log, and remove the file."""
    forget_logger()
    main([command, "-opt", str(path), *flags, "--force_yml", *overrides])
    forget_logger()
    files = [file for folder in ("experiments", "results") for file in Path(folder).rglob("*.log")]
    log = "".join(file.read_text() for file in files)
    for file in files:
        file.unlink()
    return log


def forget_logger() -> None:
    """Let BasicSR set up its logger again, as in another process."""
    logger = logging.getLogger("basicsr")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    basicsr.utils.logger.initialized_logger.clear()


__all__ = ["read_options", "run", "small_network", "small_training", "write_float_weights"]
