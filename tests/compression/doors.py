"""One network, data and schedule behind both doors: NNI's ``compress`` and BasicSR's ``QuantSRModel``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

import srq_nni
from srq_nni.archs.quantized_arch import build_float
from tests.sr_data import NETWORK, batch

NAMES = ("astronaut", "chelsea", "coffee", "rocket")
SHORT: dict[str, dict[str, Any]] = {
    "pams": {"calibration_iters": 2},
    "ddtb": {"calibration_iters": 2, "static_iters": 2, "dynamic_ratio": 0.5},
}
INT4 = {"quant_dtype": "int4"}
CONV = {"op_names": ["body.0.conv1"], **INT4}
PAPER = [{"wiring": "paper", **INT4}]
QUANTIZERS = {"pams": "PAMSQuantizer", "ddtb": "DDTBQuantizer"}


def network(num_block: int = 1, seed: int = 0) -> nn.Module:
    """Return a small float EDSR."""
    torch.manual_seed(seed)
    return build_float({**NETWORK, "num_block": num_block})


def make(method: str, model: nn.Module, entries: Any, evaluator: Any = None, **options: Any) -> Any:
    """Return the quantizer of ``method`` with a schedule of a few steps."""
    return getattr(srq_nni, QUANTIZERS[method])(model, entries, evaluator, **{**SHORT[method], **options})


def batches(folders: Path) -> list[dict[str, torch.Tensor]]:
    """Return two batches of photographs."""
    return [batch(folders, *NAMES[:2]), batch(folders, *NAMES[2:])]


def endless(data: Sequence[Any], first: int = 1) -> Any:
    """Yield the batch of iteration ``first`` and the following, as the tests of BasicSR's model do."""
    iteration = first
    while True:
        yield data[iteration % len(data)]
        iteration += 1


def steps(model: nn.Module, optimizer: Any, data: Any, first: int, last: int, quantizer: Any = None) -> list[float]:
    """Run a plain loop over iterations ``first`` to ``last``."""
    model.train()
    losses = []
    for _, sample in zip(range(first, last + 1), endless(data, first), strict=False):
        optimizer.zero_grad()
        loss = (model(sample["lq"]) - sample["gt"]).abs().mean()
        extra = None if quantizer is None else quantizer.gate_loss()
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def still_steps(model: nn.Module, count: int, parameters: Any) -> None:
    """Go through the phases of ``count`` steps whose learning rate is zero."""
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    for _ in range(count):
        optimizer.zero_grad()
        model.train()(torch.rand(1, 3, 8, 8)).mean().backward()
        optimizer.step()


def trained(method: str, data: Any, entries: Any = PAPER, count: int = 6, **options: Any) -> Any:
    """Return the quantizer of ``method`` after ``count`` steps of a plain loop."""
    quantizer = make(method, network(2), entries, **options)
    optimizer = torch.optim.Adam(quantizer.parameter_groups(lr=1e-3))
    steps(quantizer.bound_model, optimizer, data, 1, count, quantizer)
    return quantizer


class Loop:
    """A loop as an NNI user has it, for ``LoopEvaluator``; it keeps the losses."""

    def __init__(self, data: Sequence[Any], lr: float = 1e-4) -> None:
        self.data, self.lr, self.losses = data, lr, list[torch.Tensor]()

    def __call__(self, model: nn.Module, evaluator: Any, max_steps: int | None, max_epochs: int | None) -> None:
        optimizer = evaluator.watch(torch.optim.Adam(model.parameters(), lr=self.lr, betas=(0.9, 0.999)))
        model.train()
        for sample in islice(endless(self.data), max_steps):
            optimizer.zero_grad()
            pixels = (model(sample["lq"]) - sample["gt"]).abs().mean()
            loss = evaluator.loss(pixels, sample)
            loss.backward()
            optimizer.step()
            self.losses.append(torch.stack([pixels.detach(), loss.detach()]))


def plain_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a wrapped network's state under the names that the BasicSR door uses."""
    nnis = ("_scale", "_zero_point", "_tracked_max", "_tracked_min", "_step")
    return {key.replace("_nni_wrapper.", ""): value for key, value in state.items() if not key.endswith(nnis)}
