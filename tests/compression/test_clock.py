"""Who counts the steps of optimizers: networks that train, but neither their copies nor those that nobody uses."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from srq_nni.compression import clock
from tests.compression.doors import batches, trained


def test_a_network_that_trains_can_be_copied_and_its_copy_does_not_count(photo_folders: Path) -> None:
    data = batches(photo_folders)
    quantizer = trained("pams", data, count=3)
    twin = copy.deepcopy(quantizer.bound_model)
    assert torch.equal(twin.eval()(data[0]["lq"]), quantizer.bound_model.eval()(data[0]["lq"]))
    twin.train()(data[0]["lq"]).sum().backward()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    assert quantizer.clock.count == 3


def test_a_forgotten_network_is_told_of_no_step(photo_folders: Path) -> None:
    gc.collect()
    others = set(clock._LISTENING)
    trained("ddtb", batches(photo_folders), count=2)
    gc.collect()
    kept = trained("pams", batches(photo_folders), count=2)
    assert set(clock._LISTENING) - others == {kept.clock}


def test_a_network_that_is_forgotten_during_a_step_does_not_break_it(photo_folders: Path) -> None:
    """The garbage collector may run while PyTorch goes through the hooks of an optimizer."""
    gc.collect()
    others = set(clock._LISTENING)
    forgotten = [trained("ddtb", batches(photo_folders), count=2)]
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    optimizer = torch.optim.SGD([weight], lr=0.5)

    def forget(*args: Any) -> None:
        forgotten.clear()
        gc.collect()

    handle = register_optimizer_step_pre_hook(forget)
    try:
        optimizer.step()
    finally:
        handle.remove()
    assert weight.item() == 0.5
    assert set(clock._LISTENING) <= others
