"""Several processes on a machine without a GPU: what BasicSR's ``--launcher pytorch`` needs there (S5).

BasicSR divides by the number of GPUs, takes NCCL and gives every network to the current GPU. With ``enable()`` it takes
gloo and the CPU instead. Where there is a GPU nothing changes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

_enabled = False


def is_enabled() -> bool:
    """Whether ``enable()`` was called."""
    return _enabled


def enable() -> None:
    """Let BasicSR run distributed on the CPU. Safe to call any number of times, before the options are parsed."""
    global _enabled
    if _enabled:
        return
    from basicsr.models.base_model import BaseModel
    from basicsr.utils import dist_util

    start, place = dist_util._init_dist_pytorch, BaseModel.model_to_device

    def init_dist_pytorch(backend: str, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            start(backend, **kwargs)
        else:
            distributed.init_process_group("gloo", **kwargs)

    def model_to_device(self: Any, net: nn.Module) -> nn.Module:
        if not self.opt["dist"] or self.device.type != "cpu":
            placed: nn.Module = place(self, net)
            return placed
        unused = self.opt.get("find_unused_parameters", False)
        return DistributedDataParallel(net.to(self.device), find_unused_parameters=unused)

    dist_util._init_dist_pytorch = init_dist_pytorch
    BaseModel.model_to_device = model_to_device
    _enabled = True
