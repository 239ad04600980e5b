"""Small quantized networks by their names, and a stock training loop for them."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from srq_nni.quantization.activation import ActivationQuantizer
from srq_nni.quantization.layers import activation_quantizers

NETWORKS: dict[str, dict[str, Any]] = {
    "EDSR": {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2},
    "MSRResNet": {"num_feat": 8, "num_block": 2, "upscale": 2},
    "RDN": {"num_feat": 8, "num_block": 2, "num_layer": 3, "num_grow_ch": 4, "upscale": 2},
    "SRResNet": {"num_feat": 8, "num_block": 2, "upscale": 2},
}
NAMES = [f"{method}_{arch}" for method in ("PAMS", "DDTB") for arch in NETWORKS]


def block(name: str = "PAMS_EDSR", **changes: Any) -> dict[str, Any]:
    bits = {} if "config_list" in changes else {"bits": 4}
    arguments = {**NETWORKS[name.split("_")[1]], **bits, "calibration_iters": 3, **changes}
    return {"type": name, **{key: value for key, value in arguments.items() if value is not None}}


def photo(seed: int = 0) -> torch.Tensor:
    """Two crops of one photograph, (2, 3, 16, 16), in [0, 1]."""
    from skimage import data

    image = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1).float() / 255
    corners = torch.randint(0, 400, (2, 2), generator=torch.Generator().manual_seed(seed))
    return torch.stack([image[:, y : y + 16, x : x + 16] for y, x in corners.tolist()])


def train(net: nn.Module, steps: int, first: int = 0, lr: float = 1e-3) -> None:
    """Train as a stock model does: one parameter group, all parameters that ask for a gradient."""
    net.train()
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr)
    for step in range(first, first + steps):
        optimizer.zero_grad()
        (net(photo(step)) - 0.5).abs().mean().backward()
        optimizer.step()


def bounds(net: nn.Module) -> torch.Tensor:
    return torch.cat([bound.detach() for _, quantizer in activation_quantizers(net) for bound in quantizer.bounds()])


def quantizers(net: nn.Module) -> list[tuple[str, ActivationQuantizer]]:
    return list(activation_quantizers(net))


def train_in_a_process(rank: int, name: str, folder: str) -> None:
    """Train as one of two processes, on images of its own, and save the state as ``<rank>.pth`` in ``folder``."""
    from basicsr.archs import build_network

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", store=distributed.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    torch.manual_seed(0)
    net = build_network(block(name))
    train(DistributedDataParallel(net), 5, first=10 * rank)
    torch.save(net.state_dict(), f"{folder}/{rank}.pth")
    distributed.destroy_process_group()
