"""The same network, data and seed give the same losses and the same state through NNI and through BasicSR."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.models import build_model
from torch import nn

import srq_nni
from srq_nni.archs.quantized_arch import build_float
from srq_nni.compression.bounds import RELATIVE_LEARNING_RATE
from tests.compression.doors import SHORT, Loop, batches, endless, make, network, plain_names
from tests.sr_data import NETWORK, changed, float_checkpoint, train_options

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
STEPS = 8
INT4 = {"quant_dtype": "int4"}


def through_basicsr(
    folders: Path, path: Path, method: str, wiring: str, skt: bool, **profile: str
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    block = {"quantizer": method, "bits": 4, "wiring": wiring, **SHORT[method], **profile}
    opt = changed(train_options(folders, float_checkpoint(path / "float.pth")), "quantization", block)
    opt |= {"is_train": True, "dist": False, "rank": 0, "world_size": 1, "manual_seed": 0}
    opt["train"]["scheduler"]["milestones"] = []
    opt["train"]["ema_decay"] = 0
    if not skt:
        del opt["train"]["skt_opt"]
    model: Any = build_model(opt)
    logs = []
    for iteration, sample in zip(range(1, STEPS + 1), endless(batches(folders)), strict=False):
        model.update_learning_rate(iteration, warmup_iter=-1)
        model.feed_data(sample)
        model.optimize_parameters(iteration)
        log = model.get_current_log()
        logs.append(torch.tensor([log["l_pix"], sum(log.values())]))
    return logs, copy.deepcopy(model.net_g.state_dict())


def through_nni(
    folders: Path, method: str, wiring: str, skt: bool, **profile: str
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = build_float(NETWORK)
    teacher = copy.deepcopy(model)
    loop = Loop(batches(folders))
    entries = srq_nni.config_list(model, method, 4, wiring) if not profile else [{"wiring": wiring, **INT4}]
    quantizer = make(method, model, entries, srq_nni.LoopEvaluator(loop), **profile)
    compressor = quantizer
    if skt:
        compressor = srq_nni.SKTDistiller.from_compressor(
            quantizer,
            srq_nni.skt_config_list(model, weight=3.92),
            teacher_model=teacher,
            teacher_predict=lambda sample, network: network(sample["lq"]),
        )
    compressor.compress(max_steps=STEPS, max_epochs=None)
    return loop.losses, plain_names(model.state_dict())


@pytest.mark.parametrize("skt", [False, True], ids=["plain", "skt"])
@pytest.mark.parametrize("wiring", ["paper", "deploy", "tensorrt", "official"])
@pytest.mark.parametrize("method", ["pams", "ddtb"])
def test_the_same_losses_and_bits(photo_folders: Path, tmp_path: Path, method: str, wiring: str, skt: bool) -> None:
    logs, state = through_basicsr(photo_folders, tmp_path, method, wiring, skt)
    losses, own = through_nni(photo_folders, method, wiring, skt)
    assert [float(loss[0]) for loss in losses] == [float(log[0]) for log in logs]
    torch.testing.assert_close(torch.stack(losses), torch.stack(logs), rtol=1e-6, atol=0)  # a sum in another order
    assert own.keys() == state.keys()
    assert not [key for key, value in state.items() if not torch.equal(value, own[key])]


@pytest.mark.parametrize("method", ["pams", "ddtb"])
def test_the_steps_of_weights_train(photo_folders: Path, method: str) -> None:
    _, state = through_nni(photo_folders, method, "paper", False)
    factors = [float(value) for key, value in state.items() if key.endswith("weight_quantizer.log_factor")]
    assert len(factors) == 2
    assert all(1e-4 < abs(factor) <= STEPS * RELATIVE_LEARNING_RATE * 1.01 for factor in factors)


@pytest.mark.parametrize("method", ["pams", "ddtb"])
def test_the_same_losses_and_bits_as_released(photo_folders: Path, tmp_path: Path, method: str) -> None:
    student = {"student": "float"}
    _, state = through_basicsr(photo_folders, tmp_path, method, "deploy", True, profile="official", **student)
    _, own = through_nni(photo_folders, method, "deploy", True, profile="official")
    assert own.keys() == state.keys()
    assert not [key for key, value in state.items() if not torch.equal(value, own[key])]


@pytest.mark.parametrize("method", ["pams", "ddtb"])
def test_nnis_own_evaluator_gives_the_same_bits(photo_folders: Path, method: str) -> None:
    """TorchEvaluator rebuilds the optimizer; the bounds still get their own group before the scheduler is built."""
    import nni
    from nni.compression.utils import TorchEvaluator

    _, expected = through_nni(photo_folders, method, "paper", False)
    model, seen = network(), []

    def loop(model: nn.Module, optimizer: Any, step: Any, scheduler: Any, max_steps: int, max_epochs: None) -> None:
        seen.append([(group["lr"], len(group["params"])) for group in optimizer.param_groups])
        seen.append(len(scheduler.base_lrs))
        model.train()
        for _, sample in zip(range(max_steps), endless(batches(photo_folders)), strict=False):
            optimizer.zero_grad()
            step(sample, model).backward()
            optimizer.step()
            scheduler.step()

    optimizer = nni.trace(torch.optim.Adam)(model.parameters(), lr=1e-4)
    scheduler = nni.trace(torch.optim.lr_scheduler.LambdaLR)(optimizer, lambda step: 1.0)
    evaluator = TorchEvaluator(loop, optimizer, lambda s, m: (m(s["lq"]) - s["gt"]).abs().mean(), scheduler)
    quantizer = make(method, model, srq_nni.config_list(model, method, 4), evaluator)
    trained, config = quantizer.compress(max_steps=STEPS, max_epochs=None)
    bounds = {"pams": 2, "ddtb": 4}[method] + 2  # and the steps of two weights
    assert seen[0][:2] == [(1e-4, len(list(network().parameters()))), (2e-3, bounds)]
    assert seen[1] == len(seen[0])
    own = plain_names(trained.state_dict())
    assert not [key for key, value in expected.items() if not torch.equal(value, own[key])]
    assert set(config) == {"body.0.conv1", "body.0.conv2"}
