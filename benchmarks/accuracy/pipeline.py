"""Trains a cell through ``QuantSRModel``, as ``srq train`` does, with images in memory; resumes where it stopped."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cells import PROTOCOL, Cell, Network, Protocol
from images import Batch, Patches
from measure import quick_psnr
from recipes import RECIPES
from schedule import in_proportion

from srq_nni import checkpoint
from srq_nni.atomic import atomic_file
from srq_nni.compression.profiles import apply_profile
from srq_nni.models.quant_sr_model import QuantSRModel

CHECKPOINT_FREQUENCY = 200  # iterations
CURVE_FREQUENCY = 500


@dataclass
class Progress:
    """What a run knows beside its weights; kept as JSON.

    Attributes:
        iteration: the last one that a checkpoint holds.
        seconds: CPU time of training so far.
        curve: (iteration, PSNR on the validation crops in dB, mean loss since the entry before).
        model: name of the newest checkpoint.
    """

    iteration: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float, float]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Progress:
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def write(self, path: Path) -> None:
        with atomic_file(path) as file:
            file.write(json.dumps(dataclasses.asdict(self)).encode())


def options(
    cell: Cell,
    network: Network,
    weights: Path,
    folder: Path,
    protocol: Protocol = PROTOCOL,
    teacher: tuple[Network, Path] | None = None,
) -> dict[str, Any]:
    """Return the BasicSR options of a cell; the YAML of the same run would hold the same keys.

    A cell with fewer iterations than the protocol goes through the same phases and schedule, all shorter alike.

    Args:
        cell: what to train.
        network, weights: the student, and the float weights that it starts from.
        folder: of checkpoints.
        protocol: what the recipe departs from.
        teacher: another network and its weights, where the recipe has one; the float student if missing.
    """
    recipe = RECIPES[cell.recipe]
    share = cell.iterations / protocol.iterations
    phases = {"calibration_iters": round(share * protocol.calibration_iters)}
    if cell.method == "ddtb":
        phases |= {"static_iters": round(share * protocol.static_iters), "dynamic_ratio": protocol.dynamic_ratio}
    block = {**phases, "bits": cell.bits, **recipe.quantization, "quantizer": cell.method, "wiring": cell.wiring}
    if network.preset:  # what QuantSRModel would find by the type of network_g
        block = apply_profile({"feature": network.feature, **block}, network.preset)
    train = {
        "optim_g": {"type": "Adam", "lr": protocol.lr, "betas": [0.9, 0.999], "weight_decay": 0},
        "optim_q": {"lr": protocol.bounds_lr},
        "scheduler": {"type": "MultiStepLR", "milestones": list(protocol.milestones), "gamma": 0.5},
        "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
        "skt_opt": {"type": "SKTLoss", "loss_weight": protocol.skt_weight},
        "channels_last": True,
    }
    train = in_proportion({key: value for key, value in {**train, **recipe.train}.items() if value is not None}, share)
    return {
        "name": cell.name,
        "model_type": "QuantSRModel",
        "scale": network.scale,
        "num_gpu": 0,
        "dist": False,
        "rank": 0,
        "world_size": 1,
        "is_train": True,
        "manual_seed": cell.seed,
        "network_g": dict(network.block),
        **({"network_t": dict(teacher[0].block)} if teacher else {}),
        "quantization": block,
        "path": {
            "pretrain_network_g": str(weights),
            "pretrain_network_t": str(teacher[1] if teacher else weights),
            "models": str(folder / "models"),
            "training_states": str(folder / "states"),
        },
        "train": {**train, "total_iter": cell.iterations},
    }


def _resumed(opt: dict[str, Any], iteration: int) -> QuantSRModel:
    states = Path(opt["path"]["training_states"])
    opt["path"]["pretrain_network_g"] = f"{opt['path']['models']}/net_g_{iteration}.pth"
    model = QuantSRModel(opt)
    state = checkpoint.read(states / f"{iteration}.state")
    model.resume_training(state)
    return model


def train(
    cell: Cell, opt: Mapping[str, Any], folder: Path, patches: Patches, validation: Batch, crop: int
) -> tuple[torch.nn.Module, Progress]:
    """Train a cell to its end, from its newest checkpoint on; return the network to measure and the progress.

    Args:
        cell: what to train.
        opt: its options.
        folder: of checkpoints and progress.
        patches, validation: data; ``validation`` only makes the curve.
        crop: border that the curve leaves out.
    """
    log = folder / "progress.json"
    progress = Progress.read(log)
    torch.manual_seed(cell.seed)
    model = _resumed(dict(opt), progress.iteration) if progress.iteration else QuantSRModel(dict(opt))
    started, losses = time.process_time(), list[float]()
    for iteration in range(progress.iteration + 1, cell.iterations + 1):
        model.update_learning_rate(iteration, warmup_iter=opt["train"].get("warmup_iter", -1))
        model.feed_data(patches.batch(iteration))
        model.optimize_parameters(iteration)
        losses.append(float(model.log_dict["l_pix"]))
        last = iteration == cell.iterations
        if iteration % CURVE_FREQUENCY == 0 or last:
            spent = time.process_time()
            psnr = quick_psnr(to_measure(model), validation, crop)
            progress.curve.append((iteration, psnr, sum(losses) / len(losses)))
            print(f"{cell.name} {iteration}: {psnr:.3f} dB, loss {progress.curve[-1][2]:.5f}", flush=True)
            losses, started = [], started + time.process_time() - spent
        if iteration % CHECKPOINT_FREQUENCY == 0 or last:
            now = time.process_time()
            progress.iteration, progress.seconds, started = iteration, progress.seconds + now - started, now
            _save(model, progress, folder)
    return to_measure(model), progress


def to_measure(model: QuantSRModel) -> torch.nn.Module:
    """Return the averaged network if there is one, else the network."""
    network: torch.nn.Module = model.net_g_ema if hasattr(model, "net_g_ema") else model.net_g
    return network


def _save(model: QuantSRModel, progress: Progress, folder: Path) -> None:
    """Save weights and state, then the progress that points to them, then drop the older ones."""
    model.save(0, progress.iteration)
    progress.write(folder / "progress.json")
    for old in [*(folder / "models").glob("*.pth"), *(folder / "states").glob("*.state")]:
        if str(progress.iteration) not in old.stem.split("_"):
            old.unlink()
