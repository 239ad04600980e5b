"""NNI's QAT and LSQ under protocol P, on input and weight of the body's convolutions, with the loss of the others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import nni
import torch
from cells import PROTOCOL, Cell, Network, Protocol
from images import Batch, Patches
from measure import quick_psnr
from nni.compression.quantization import LsqQuantizer, QATQuantizer
from nni.compression.utils import TorchEvaluator
from pipeline import CHECKPOINT_FREQUENCY, CURVE_FREQUENCY, Progress

from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import build_float
from srq_nni.losses.skt_loss import SKTLoss
from srq_nni.models.feature import InputRecorder

QUANTIZERS: dict[str, tuple[Any, str]] = {"qat": (QATQuantizer, "affine"), "lsq": (LsqQuantizer, "symmetric")}


def _network(network: Network, weights: Path) -> torch.nn.Module:
    model = build_float(network.block)
    checkpoint.load_weights(model, weights)
    for module in model.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False  # NNI's hooks hang on tensors, which must not change in place
    return model


def train(
    cell: Cell,
    network: Network,
    weights: Path,
    folder: Path,
    patches: Patches,
    validation: Batch,
    protocol: Protocol = PROTOCOL,
) -> tuple[torch.nn.Module, Progress]:
    """Train a cell to its end, from its newest checkpoint on; return the wrapped network and the progress."""
    torch.manual_seed(cell.seed)
    model, teacher = _network(network, weights), _network(network, weights).eval().requires_grad_(False)
    seen, taught = InputRecorder(model, network.feature), InputRecorder(teacher, network.feature, ends_pass=True)
    skt, log = SKTLoss(loss_weight=protocol.skt_weight), folder / "progress.json"
    progress = Progress.read(log)

    def loss(batch: Batch, model: torch.nn.Module) -> torch.Tensor:
        pixels = (model(batch["lq"]) - batch["gt"]).abs().mean()
        taught.run(batch["lq"])
        return pixels + skt(seen.take(), taught.take())

    def loop(model: Any, optimizer: Any, step: Any, scheduler: Any, *_: Any) -> None:
        if progress.iteration:
            model(patches.batch(1)["lq"])  # NNI makes its buffers in the first pass
            seen.take()
            state = torch.load(folder / f"{progress.iteration}.state", weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
        started, losses = time.process_time(), list[float]()
        model.train()
        for iteration in range(progress.iteration + 1, cell.iterations + 1):
            optimizer.zero_grad()
            value = step(patches.batch(iteration), model)
            value.backward()
            optimizer.step()
            scheduler.step()
            losses.append(float(value))
            last = iteration == cell.iterations
            if iteration % CURVE_FREQUENCY == 0 or last:
                spent = time.process_time()
                psnr = quick_psnr(model, validation, network.scale)
                progress.curve.append((iteration, psnr, sum(losses) / len(losses)))
                losses, started = [], started + time.process_time() - spent
            if iteration % CHECKPOINT_FREQUENCY == 0 or last:
                now = time.process_time()
                progress.iteration, progress.seconds, started = iteration, progress.seconds + now - started, now
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                checkpoint.save({**state, "scheduler": scheduler.state_dict()}, folder / f"{iteration}.state")
                progress.write(log)
                for old in folder.glob("*.state"):
                    if old.stem != str(iteration):
                        old.unlink()

    optimizer = nni.trace(torch.optim.Adam)(model.parameters(), lr=protocol.lr)
    scheduler = nni.trace(torch.optim.lr_scheduler.MultiStepLR)(optimizer, list(protocol.milestones), 0.5)
    evaluator = TorchEvaluator(loop, optimizer, loss, scheduler)
    maker, scheme = QUANTIZERS[cell.method]
    entry = {
        "op_names_re": [network.body],
        "target_names": ["_input_", "weight"],
        "quant_dtype": f"int{cell.bits}",
        "quant_scheme": scheme,
        "granularity": "default",
    }
    maker(model, [entry], evaluator).compress(cell.iterations, None)
    return model, progress
