"""Float weights that a training run equalizes before its first iteration (``train: equalize_iter``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from basicsr.utils import get_root_logger
from torch import distributed

from srq_nni.equalization.fit import check_equalizable
from srq_nni.errors import CheckpointError
from srq_nni.models.dataset_images import images_from
from srq_nni.models.equalized_weights import equalize_weights, float_start, networks_to_start

FILE = "equalized.pth"


def check_equalization(opt: Mapping[str, Any]) -> None:
    """Check that the weights of a training run can be equalized, if it asks for that.

    Raises:
        SRQError: one sentence that names the key.
    """
    if opt["train"].get("equalize_iter"):
        check_equalizable(*float_start(opt))
        images_from(opt, count=1)


def equalized_path(opt: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``path`` block of a training run, with equalized weights if it asks for them.

    The first process of a new run writes them into its folder; a run that is resumed finds them there, for its teacher.

    Raises:
        SRQError: if the weights cannot be equalized, or are gone from the folder.
    """
    path: dict[str, Any] = opt["path"]
    iterations = opt["train"].get("equalize_iter")
    if not iterations:
        return path
    file, networks = Path(path["experiments_root"]) / FILE, networks_to_start(opt)
    if path.get("resume_state"):
        networks = tuple(network for network in networks if network != "g")  # that of the checkpoint
        if networks and not file.is_file():
            raise CheckpointError(
                f"'{file}' is missing, the equalized weights that this run began with and its teacher has; "
                "put it back, or start anew"
            )
    else:
        if opt.get("rank", 0) == 0:
            done = equalize_weights(opt, file, iterations=iterations)
            get_root_logger().info(f"Equalized the float weights ({done}); they are in {file}.")
        if opt.get("dist"):
            distributed.barrier()
    where = {"pretrain_network_": str(file), "param_key_": "params"}
    return path | {start + network: value for network in networks for start, value in where.items()}
