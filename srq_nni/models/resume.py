"""Continuing a run as if it had never stopped: the newest whole checkpoint, and the random numbers that come next.

The training process draws, too (drop path, dropout, data that a model degrades itself). Each iteration therefore starts
from (seed, rank, iteration), so that nothing has to be stored and a resumed run draws what an unbroken one does.
"""

from __future__ import annotations

import logging
import pickle
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from srq_nni import checkpoint
from srq_nni.atomic import remove_leftovers
from srq_nni.errors import CheckpointError

TRAINING_STREAM = 1  # apart from the random numbers of the samples, see data_order


def install() -> None:
    """Let BasicSR's ``train_pipeline`` resume in this way."""
    import basicsr.train

    basicsr.train.load_resume_state = load_resume_state
    basicsr.train.build_model = _seeding_iterations(basicsr.train.build_model)


def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    """Find and load the newest training state of ``opt``, on the CPU when there is no GPU (S2, S3 of ``compat``).

    With ``--auto_resume`` a state that cannot be read, or whose networks are missing or cannot be read, is passed over
    for the one before it.

    Raises:
        CheckpointError: if ``path: resume_state`` names such a state.
    """
    _agree_on_the_seed(opt)
    state = _newest_state(opt)
    if opt.get("dist"):
        distributed.barrier()  # the first process renames the folder next if there is no state in it
    return state


def _newest_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    from basicsr.utils import check_resume

    if opt["auto_resume"]:
        folder = Path(opt["path"]["training_states"])
        numbered = (path for path in folder.glob("*.state") if path.stem.isdecimal())
        found = sorted(numbered, key=lambda path: int(path.stem), reverse=True)
        if opt.get("rank", 0) == 0:
            for leftover in (folder, Path(opt["path"]["models"])):
                remove_leftovers(leftover)
    else:
        found = [Path(opt["path"]["resume_state"])] if opt["path"].get("resume_state") else []
    for path in found:
        try:
            state = _read_state(path, opt)
        except CheckpointError as error:
            if not opt["auto_resume"]:
                raise CheckpointError(f"path: resume_state: {error}") from None
            # Not BasicSR's logger: it gets its file later, and only if nobody has asked for it before.
            logging.getLogger(__name__).warning("%s; trying the state before it", error)
            continue
        opt["path"]["resume_state"] = str(path)
        check_resume(opt, state["iter"])
        if state.get("seed") is not None:
            opt["manual_seed"] = state["seed"]  # a run without manual_seed drew one, and goes on with that
        return state
    return None


def _read_state(path: Path, opt: Mapping[str, Any]) -> dict[str, Any]:
    """Return a training state whose networks are there, too."""
    device = torch.device("cuda", torch.cuda.current_device()) if opt["num_gpu"] else torch.device("cpu")
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        iteration = int(state["iter"])
    except (pickle.UnpicklingError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"training state '{path}' cannot be read ({reason}); name a whole .state file") from None
    ignored = opt["path"].get("ignore_resume_networks") or []
    for network in (key for key in opt if key.startswith("network_") and key not in ignored):
        file = Path(opt["path"]["models"]) / f"net_{network.removeprefix('network_')}_{iteration}.pth"
        try:
            checkpoint.read(file)
        except CheckpointError as error:
            raise CheckpointError(f"training state '{path}' has no network to go on with: {error}") from None
    return state


def _agree_on_the_seed(opt: dict[str, Any]) -> None:
    """Give all processes the seed of the first; without ``manual_seed`` each has drawn its own, and one is stored."""
    if opt.get("dist"):
        seed = [opt.get("manual_seed")]
        distributed.broadcast_object_list(seed, src=0)
        opt["manual_seed"] = seed[0]


def seed_iteration(seed: int, rank: int, iteration: int) -> None:
    """Start the generators of Python, numpy and torch (all devices) for one training iteration of one process."""
    words = np.random.SeedSequence([seed, rank, iteration], spawn_key=(TRAINING_STREAM,)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


def _seeding_iterations(build: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """Let the model that is built seed each iteration where BasicSR's loop first names it: the learning rate."""

    def build_model(opt: dict[str, Any]) -> Any:
        model = build(opt)
        update = model.update_learning_rate

        def update_learning_rate(current_iter: int, **settings: Any) -> None:
            seed_iteration(int(opt["manual_seed"]), int(opt["rank"]), current_iter)
            update(current_iter, **settings)

        model.update_learning_rate = update_learning_rate
        return model

    return build_model
