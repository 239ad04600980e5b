"""Each run for one iteration a phase, with the network and all options of the real one but its small crops, on a CPU.

The printed commands run as they are, in forked processes as ``torchrun`` would start them; a few overrides behind them
shorten phases and data. Float weights are random: what is looked at is whether every step of the way works.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from commands import REPOSITORY, Run, runs
from folders import crops_of, write_datasets
from provenance import provenance
from published import SETS
from scores import newest_log, read_log

import srq_nni  # noqa: F401 - BasicSR can be imported only after it
from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import build_float
from srq_nni.cli import test, train
from srq_nni.cli.main import exit_with
from srq_nni.errors import CheckpointError, DataError, SRQError
from srq_nni.models.options import read_options

TRAINED, TESTED = 48, 24  # pixels of a photo that trains or is tested, high resolution
CROP = 8  # pixels of a training crop, low resolution; the published ones have 24 to 48
SEED = 0
LONGEST = 900  # seconds of a command
PHASES = {"PAMS": 2, "DDTB": 3}  # calibrate, train; observe, hold the gates, apply them


@dataclass(frozen=True)
class Outcome:
    """How a dry run ended.

    Attributes:
        run: what ran.
        seconds: wall time.
        error: empty if it passed, else what went wrong, in a line.
    """

    run: Run
    seconds: float
    error: str


def dry_runs(chosen: Sequence[Run], photos: Path, processes: int) -> Iterator[Outcome]:
    """Yield the outcome of each run, in a temporary folder that is removed in the end.

    Args:
        chosen: what to run.
        photos: folder of photos of at least 48x48 pixels.
        processes: that train together, as GPUs would.

    Raises:
        DataError: if the photos will not do.
    """
    training, tested = crops_of(photos, TRAINED), crops_of(photos, TESTED)
    with tempfile.TemporaryDirectory(prefix="full_recipe_") as name:
        folder = Path(name)
        (folder / "basicsr_configs").symlink_to(REPOSITORY / "basicsr_configs")
        write_datasets(training, tested, folder, scales=sorted({run.setting.scale for run in chosen}))
        for run in chosen:
            started = time.monotonic()
            try:
                _dry_run(run, folder, processes)
                error = ""
            except SRQError as problem:
                error = str(problem)
            for place in ("experiments", "results"):
                shutil.rmtree(folder / place, ignore_errors=True)
            yield Outcome(run, time.monotonic() - started, error)


def widest_first(chosen: Sequence[Run]) -> list[Run]:
    """Return runs in an order in which each method, network, scale and recipe comes once before one comes twice."""
    seen: Counter[tuple[str, str, int, str]] = Counter()
    ranked = []
    for run in chosen:
        kind = (run.setting.method, run.setting.network, run.setting.scale, run.recipe)
        ranked.append((seen[kind], run))
        seen[kind] += 1
    return [run for _, run in sorted(ranked, key=lambda pair: pair[0])]


def report(outcomes: Sequence[Outcome], processes: int) -> str:
    """Return the page that says how ``outcomes`` ended, and how many of all runs are not among them."""
    passed = sum(not outcome.error for outcome in outcomes)
    lines = [f"| {outcome.run.name} | {outcome.seconds:.0f} | {outcome.error or 'passed'} |" for outcome in outcomes]
    parts = [
        "# Dry runs of the published settings",
        f"`python benchmarks/full_recipe/recipe.py --dry-run DATA --gpus {processes}`: {PHASES['PAMS']} iterations of "
        f"PAMS, {PHASES['DDTB']} of DDTB, one in each phase, of the whole network from random weights, LR crops of "
        f"{CROP} pixels; then validation, and `srq test` on four sets. No score means anything.",
        f"{passed} passed, {len(outcomes) - passed} failed, {len(runs()) - len(outcomes)} did not run. "
        f"Wall time on a shared machine; {provenance()}.",
        "\n".join(["| run | seconds | |", "|---|---|---|", *lines]),
    ]
    return "\n\n".join(parts) + "\n"


def _dry_run(run: Run, folder: Path, processes: int) -> None:
    last = PHASES[run.setting.method]
    phases = {"calibration_iters": 1, **({"static_iters": 1} if run.setting.method == "DDTB" else {})}
    shorter = [f"quantization:{key}={value}" for key, value in phases.items()]
    data = "datasets:train:"
    cheaper = [f"{data}batch_size_per_gpu=1", f"{data}num_worker_per_gpu=0", f"{data}dataset_enlarge_ratio=1"]
    cheaper += [f"{data}gt_size={CROP * run.setting.scale}", "num_gpu=0"]
    often = [f"train:total_iter={last}", f"val:val_freq={last}", "logger:print_freq=1", "logger:use_tb_logger=false"]
    often += [f"logger:save_checkpoint_freq={last}"]
    _write_float_weights(run, folder)
    command = run.training(processes)
    words = command[command.index("-opt") :]
    _start(train.main, [*words, *shorter, *cheaper, *often], folder, processes, "srq train")
    _check_checkpoint(run, folder / run.model(last))
    trained = f"path:pretrain_network_g={run.model(last)}"
    _start(test.main, [*run.testing()[2:], "num_gpu=0", trained], folder, 1, "srq test")
    log = newest_log(folder, run)
    if log is None:
        raise DataError("srq test wrote no log")
    scores = read_log(log, run, last).scores
    if not np.isfinite([value for name in SETS for value in scores[name]]).all():
        raise DataError(f"srq test scored {scores}")


def _write_float_weights(run: Run, folder: Path) -> None:
    options = read_options(REPOSITORY / run.file("train"))
    file = folder / options["path"]["pretrain_network_g"]
    if file.exists():  # of another run with this network
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    torch.save({"params": build_float(options["network_g"]).state_dict()}, file)


def _check_checkpoint(run: Run, file: Path) -> None:
    """Raise a CheckpointError unless the network is whole, finite and has the bits of the run."""
    content = checkpoint.read(file)
    bits = content[checkpoint.METADATA_KEY]["quantization"]["bits"]
    broken = [name for name, value in content["params"].items() if not torch.isfinite(value).all()]
    if bits != run.setting.bits or broken:
        raise CheckpointError(f"'{file.name}' has {bits} bits, and NaN or infinity in {broken}")


def _start(
    command: Callable[[Sequence[str]], None], words: Sequence[str], folder: Path, processes: int, title: str
) -> None:
    """Run a command in forked processes and wait for all; raise a DataError with the last line of one that failed."""
    context = get_context("fork")
    port = _free_port()
    output = [folder / f"output{rank}" for rank in range(processes)]
    arguments = [(command, list(words), folder, rank, processes, port, output[rank]) for rank in range(processes)]
    children = [context.Process(target=_process, args=own) for own in arguments]
    for child in children:
        child.start()
    deadline = time.monotonic() + LONGEST
    for child in children:
        child.join(max(deadline - time.monotonic(), 0))
    for child in children:
        if child.is_alive():
            child.kill()
            child.join()
    failed = [file for child, file in zip(children, output, strict=True) if child.exitcode]
    if failed:
        lines = [line for line in failed[0].read_text(errors="replace").splitlines() if line.strip()]
        raise DataError(f"{title} failed: {lines[-1] if lines else f'stopped after {LONGEST} seconds'}")


def _process(
    command: Callable[[Sequence[str]], None],
    words: list[str],
    folder: Path,
    rank: int,
    processes: int,
    port: int,
    output: Path,
) -> None:
    """Be one process of a command; standard output and error go to a file."""
    os.chdir(folder)
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo looks up the host name, which need not resolve
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    exit_with(command, words)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
