"""Ctrl-C while several processes train: they stop at one iteration, and a resumed run ends with the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from basicsr.models.sr_model import SRModel
from torch import distributed

from tests.cli.killing import MODELS, STATES, digest
from tests.cli.test_torchrun import LAST, free_port, options_file, two_ranks
from tests.sr_data import REPOSITORY

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch was built without gloo"),
]
SENTENCE = "srq: stopped after iteration {}, which is saved; continue with: the same command and --auto_resume\n"


def signals_at(iteration: int, ranks: tuple[int, ...], number: int) -> Any:
    """Send each of these ranks, and no other, the signal in the middle of a step."""

    def arrange(rank: int) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell switches off in the background
        feed, seen = SRModel.feed_data, []

        def feed_data(self: Any, data: Any) -> None:
            feed(self, data)
            seen.append(1)
            if len(seen) == iteration and rank in ranks:
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), number)  # torchrun sends one, too

        SRModel.feed_data = feed_data

    return arrange


def test_one_signal_stops_both_at_one_iteration(photo_folders: Path, tmp_path: Path) -> None:
    file, stopped, whole = options_file(photo_folders, tmp_path), tmp_path / "stopped", tmp_path / "whole"
    rare = ["--force_yml", "logger:save_checkpoint_freq=100", "manual_seed=3"]
    assert two_ranks(stopped, file, *rare, arrange=signals_at(2, (1,), signal.SIGINT)) == [130, 130]
    assert (stopped / "stderr0").read_text().endswith(SENTENCE.format(3))
    assert "stopped" not in (stopped / "stderr1").read_text()
    assert [path.name for path in (stopped / STATES).iterdir()] == ["3.state"]
    end = ["--force_yml", f"logger:save_checkpoint_freq={LAST}", "manual_seed=3"]
    assert two_ranks(stopped, file, "--auto_resume", *end) == [0, 0]
    assert two_ranks(whole, file, *end) == [0, 0]
    assert digest(stopped, LAST) == digest(whole, LAST)


def test_a_validation_is_left(photo_folders: Path, tmp_path: Path) -> None:
    """Only the first process validates; the others wait for it in the next iteration."""

    def arrange(rank: int) -> None:
        test = SRModel.test

        def test_and_send(self: Any) -> None:
            test(self)
            with open("validated", "a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGTERM)

        SRModel.test = test_and_send

    file = options_file(photo_folders, tmp_path)
    flags = ["--force_yml", "logger:save_checkpoint_freq=100", "val:val_freq=2"]
    assert two_ranks(tmp_path / "run", file, *flags, arrange=arrange) == [143, 143]
    assert (tmp_path / "run" / "stderr0").read_text().endswith(SENTENCE.format(3))
    assert (tmp_path / "run" / "validated").read_text() == "x"
    assert [path.name for path in (tmp_path / "run" / MODELS).iterdir()] == ["net_g_3.pth"]


@pytest.mark.slow
def test_ctrl_c_at_torchrun(photo_folders: Path, tmp_path: Path) -> None:
    torchrun = Path(sys.executable).with_name("torchrun")
    command = [torchrun, "--nproc_per_node=2", f"--master_port={free_port()}", "-m", "srq_nni.cli.train"]
    command += ["-opt", options_file(photo_folders, tmp_path), "--launcher", "pytorch"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    endless = ["--force_yml", "logger:save_checkpoint_freq=100000", "train:total_iter=100000", "val:val_freq=100000"]
    with (tmp_path / "stderr").open("w") as errors:
        run = subprocess.Popen([*command, *endless], cwd=tmp_path, env=environment, stderr=errors)
    logs, deadline = [], time.monotonic() + 300
    while not any("iter:       4" in log.read_text() for log in logs) and time.monotonic() < deadline:
        time.sleep(1)
        logs = list((tmp_path / "experiments/tiny").glob("*.log"))
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=120) != 0
    (line,) = [line for line in (tmp_path / "stderr").read_text().splitlines() if "stopped after iteration" in line]
    (state,) = (tmp_path / STATES).iterdir()
    assert line == SENTENCE.format(state.stem).strip()
