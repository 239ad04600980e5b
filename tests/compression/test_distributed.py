"""Two processes on the CPU: each sees other images, and bounds, gates and statistics are the same on both."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from tests.compression.doors import batches, endless, make, network

pytestmark = pytest.mark.processes
STEPS = 8


def train(rank: int, method: str, folder: str, photographs: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    options: dict[str, Any] = {"dynamic_ratio": 0.5} if method == "ddtb" else {}
    own = batches(Path(photographs))[rank]
    data = [own, {name: image.flip(3) for name, image in own.items()}]
    state: dict[str, Any] = {}
    for part in (STEPS, 2):  # the second part goes on from a state that was loaded after the network was wrapped
        quantizer = make(method, network(2), [{"wiring": "deploy", "quant_dtype": "int4"}], **options)
        model = DistributedDataParallel(quantizer.bound_model)
        if state:
            quantizer.bound_model.load_state_dict(state)
        _steps(quantizer, model, data, part)
        state = quantizer.bound_model.state_dict()
    torch.save(state, f"{folder}/{rank}.pth")
    distributed.destroy_process_group()


def _steps(quantizer: Any, model: DistributedDataParallel, data: list[Any], number: int) -> None:
    optimizer = torch.optim.Adam(quantizer.parameter_groups(lr=1e-3))
    model.train()
    for _, sample in zip(range(number), endless(data), strict=False):
        optimizer.zero_grad()
        loss = (model(sample["lq"]) - sample["gt"]).abs().mean()
        extra = quantizer.gate_loss()
        (loss if extra is None else loss + extra).backward()
        optimizer.step()


@pytest.mark.parametrize("method", ["pams", "ddtb"])
def test_both_processes_end_with_the_same_state(photo_folders: Path, tmp_path: Path, method: str) -> None:
    multiprocessing.spawn(train, (method, str(tmp_path), str(photo_folders)), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1))
    assert one.keys() == two.keys()
    assert not [key for key in one if not torch.equal(one[key], two[key])]
    assert any("gate.reduce.weight" in key for key in one) == (method == "ddtb")
    bounds = [value for key, value in one.items() if key.endswith((".alpha", ".lower", ".upper"))]
    assert bounds and all(bound.abs() != 10 for bound in bounds), "they left their start"
