"""``torchrun --nproc_per_node=2`` on CPUs, with the binary itself; and two processes that are killed and go on."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

import srq_nni
from srq_nni.cli.main import exit_with
from srq_nni.cli.train import main
from tests.cli.killing import MODELS, STATES, Status, die_at_iteration, digest, forked
from tests.sr_data import REPOSITORY, changed, float_checkpoint, train_options, write_yaml

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch was built without gloo"),
]
DDTB = {"quantizer": "ddtb", "bits": 2, "calibration_iters": 2, "static_iters": 2, "dynamic_ratio": 0.5}
LAST = 6


def options_file(photo_folders: Path, tmp_path: Path) -> str:
    """Write options without a seed, so that each process draws one of its own."""
    options = changed(train_options(photo_folders, float_checkpoint(tmp_path / "float.pth")), "quantization", DDTB)
    del options["manual_seed"]
    options["train"] |= {"total_iter": LAST, "equalize_iter": 2}
    return write_yaml(tmp_path / "train.yml", options)


def test_torchrun_trains_in_two_processes(photo_folders: Path, tmp_path: Path) -> None:
    torchrun = Path(sys.executable).with_name("torchrun")
    command = [torchrun, "--nproc_per_node=2", f"--master_port={free_port()}", "-m", "srq_nni.cli.train"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, "-opt", options_file(photo_folders, tmp_path), "--launcher", "pytorch"],
        **{"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300},
    )
    assert run.returncode == 0, run.stderr
    assert sorted(file.name for file in (tmp_path / MODELS).iterdir()) == [
        *(f"net_g_{iteration}.pth" for iteration in (2, 4, 6)),
        "net_g_latest.pth",
    ]
    assert not srq_nni.load(tmp_path / MODELS / "net_g_latest.pth").training
    assert (tmp_path / "experiments" / "tiny" / "equalized.pth").is_file()
    log = next((tmp_path / "experiments/tiny").glob("*.log")).read_text()
    assert "World size (gpu number): 2" in log and "psnr" in log


def free_port() -> int:
    """Return a port that nobody has, below those that the kernel gives away by itself."""
    for port in range(20000 + os.getpid() % 10000, 32768):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no port is free")


def two_ranks(
    folder: Path,
    file: str,
    *flags: str,
    kill: int | None = None,
    chance: int = 0,
    arrange: Callable[[int], None] | None = None,
) -> list[Status]:
    """Do in two forked processes what torchrun's do; return their exit statuses.

    Args:
        kill: iteration before which both die.
        chance: decides, with the rank, which seeds are drawn.
        arrange: called in each process with its rank; standard error then goes to the file ``stderr`` and the rank.
    """
    folder.mkdir(exist_ok=True)
    port = str(free_port())

    def process(rank: int) -> None:
        os.chdir(folder)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        random.seed(chance + rank)
        if kill is not None:
            die_at_iteration(kill)
        arguments = ["-opt", file, "--launcher", "pytorch", *flags]
        if arrange is None:
            main(arguments)
        else:
            sys.stderr = open(f"stderr{rank}", "w", buffering=1)  # noqa: SIM115 - pytest holds the descriptor
            arrange(rank)
            try:
                exit_with(main, arguments)
            except SystemExit as ended:
                os._exit(int(ended.code or 0))
        distributed.destroy_process_group()

    return forked(*(lambda rank=rank: process(rank) for rank in (0, 1)))  # type: ignore[misc]


def test_two_processes_that_were_killed_end_with_the_same_bits(photo_folders: Path, tmp_path: Path) -> None:
    file = options_file(photo_folders, tmp_path)
    assert two_ranks(tmp_path / "whole", file) == [0, 0]
    seeds = {state["seed"] for state in states(tmp_path / "whole")}
    assert len(seeds) == 1
    for kill in (2, 4, 6):
        killed = tmp_path / f"killed{kill}"
        assert two_ranks(killed, file, kill=kill) == [-signal.SIGKILL] * 2
        assert two_ranks(killed, file, "--auto_resume", chance=0 if kill == 2 else 50) == [0, 0]
        assert digest(killed, LAST) == digest(tmp_path / "whole", LAST)


@pytest.mark.parametrize("stock", [False, True], ids=["QuantSRModel", "SRModel"])
def test_the_first_process_validates_alone_without_an_average(photo_folders: Path, tmp_path: Path, stock: bool) -> None:
    """DDP would broadcast buffers to processes that train meanwhile, and read their gradients."""
    options = train_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))
    options["train"] |= {"ema_decay": 0, "total_iter": LAST}
    options["val"]["val_freq"] = 2
    if stock:
        options |= {"model_type": "SRModel", "network_g": {**options["network_g"], "type": "PAMS_EDSR", "bits": 4}}
        for block, key in (("path", "pretrain_network_t"), ("train", "skt_opt")):
            del options[block][key]
        del options["quantization"]
    else:
        options["quantization"] = DDTB
    assert two_ranks(tmp_path, write_yaml(tmp_path / "train.yml", options)) == [0, 0]
    log = next((tmp_path / "experiments/tiny").glob("*.log")).read_text()
    assert log.count("# psnr") == 4, "three times, and at the end"
    state = torch.load(tmp_path / MODELS / f"net_g_{LAST}.pth", weights_only=True)["params"]
    assert all(torch.isfinite(value).all() for value in state.values())


def states(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(file, weights_only=True) for file in (folder / STATES).glob("*.state")]
