"""Ctrl-C while training: one line that says how to go on, and the same bits at the end. The signals are real."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel

from srq_nni.cli.main import main
from tests.cli.killing import STATES, digest, forked, train
from tests.sr_data import changed, float_checkpoint, train_options, write_yaml

pytestmark = [pytest.mark.processes, pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")]
LAST = 8
DDTB = {"quantizer": "ddtb", "bits": 2, "calibration_iters": 3, "static_iters": 2, "dynamic_ratio": 0.5}


@pytest.fixture
def options(photo_folders: Path, tmp_path: Path) -> dict[str, Any]:
    options = train_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))
    options["train"]["total_iter"] = LAST
    options["val"]["val_freq"] = 4
    options["logger"] |= {"save_checkpoint_freq": 100, "use_tb_logger": True}
    options["datasets"]["train"]["num_worker_per_gpu"] = 2
    return options


def interrupted(
    folder: Path, arguments: list[str], arrange: Callable[[Callable[[], None]], None], number: int = signal.SIGINT
) -> tuple[int, str]:
    """Run ``srq`` in a session of its own, as a terminal has one; return its status and its last line.

    Args:
        arrange: called in the process with a function that sends the signal: Ctrl-C reaches the whole session, the
            processes that load data included, and SIGTERM this process alone.
    """
    folder.mkdir(exist_ok=True)

    def action() -> None:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell switches off in the background
        os.chdir(folder)
        sys.stderr = open("stderr", "w", buffering=1)  # noqa: SIM115 - pytest holds the descriptor
        arrange(lambda: os.killpg(0, number) if number == signal.SIGINT else os.kill(os.getpid(), number))
        try:
            main(arguments)
        except SystemExit as ended:
            os._exit(int(ended.code or 0))

    (status,) = forked(action)
    return status, (folder / "stderr").read_text().splitlines()[-1]


def at_iteration(iteration: int, times: int = 1) -> Callable[[Callable[[], None]], None]:
    """Send the signal in the middle of a step."""

    def arrange(send: Callable[[], None]) -> None:
        feed = SRModel.feed_data
        seen = []

        def feed_data(self: Any, data: Any) -> None:
            feed(self, data)
            seen.append(1)
            if len(seen) == iteration and data["lq"].shape[0] == 2:
                for _ in range(times):
                    send()

        SRModel.feed_data = feed_data

    return arrange


def at_image(image: int) -> Callable[[Callable[[], None]], None]:
    """Send the signal when a validation image is computed."""

    def arrange(send: Callable[[], None]) -> None:
        test, seen = SRModel.test, []

        def test_and_send(self: Any) -> None:
            test(self)
            seen.append(1)
            if len(seen) == image:
                send()

        SRModel.test = test_and_send

    return arrange


@pytest.mark.parametrize(
    ("arrange", "block", "finished"),
    [
        (at_iteration(3), None, 3),
        (at_image(2), None, 4),
        (at_iteration(2), DDTB, 2),
        (at_iteration(3), "SRModel", 3),
    ],
    ids=["pams", "validating", "ddtb observing", "stock"],
)
def test_ctrl_c_leaves_a_state_from_which_the_run_ends_with_the_same_bits(
    options: dict[str, Any], tmp_path: Path, arrange: Any, block: Any, finished: int
) -> None:
    if block == "SRModel":
        options["model_type"] = "SRModel"
        del options["quantization"], options["train"]["skt_opt"]
    elif block is not None:
        options = changed(options, "quantization", block)
    path = write_yaml(tmp_path / "o ne.yml", options)
    status, line = interrupted(tmp_path / "stopped", ["train", "-opt", path], arrange)
    assert line == (
        f"srq: stopped after iteration {finished}, which is saved; "
        f"continue with: srq train -opt {shlex.quote(path)} --auto_resume"
    )
    assert status == 130
    assert [file.name for file in (tmp_path / "stopped" / STATES).iterdir()] == [f"{finished}.state"]
    assert train(tmp_path / "stopped", path, "--auto_resume", "--force_yml", f"logger:save_checkpoint_freq={LAST}") == 0
    assert train(tmp_path / "whole", path, "--force_yml", f"logger:save_checkpoint_freq={LAST}") == 0
    assert digest(tmp_path / "stopped", LAST) == digest(tmp_path / "whole", LAST)


def test_sigterm_is_heard_too(options: dict[str, Any], tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "o.yml", options)
    arguments = ["train", "-opt", path, "--force_yml", "name=other", "--auto_resume"]
    status, line = interrupted(tmp_path / "stopped", arguments, at_iteration(1), signal.SIGTERM)
    assert status == 143
    assert line == (
        "srq: stopped after iteration 1, which is saved; "
        f"continue with: srq train -opt {path} --force_yml name=other --auto_resume"
    )


def test_a_second_signal_stops_at_once(options: dict[str, Any], tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "o.yml", options)
    status, line = interrupted(tmp_path / "stopped", ["train", "-opt", path], at_iteration(3, times=2))
    assert (status, line) == (130, "srq: stopped before a state was saved; the same command starts again")
    often = ["train", "-opt", path, "--force_yml", "logger:save_checkpoint_freq=1"]
    status, line = interrupted(tmp_path / "stopped", often, at_iteration(3, times=2))
    assert (status, line.split(" srq ")[0]) == (130, "srq: stopped; continue from the last saved state with:")


def test_before_the_first_and_after_the_last_iteration(options: dict[str, Any], tmp_path: Path) -> None:
    def while_building(send: Callable[[], None]) -> None:
        schedulers = BaseModel.setup_schedulers

        def setup_schedulers(self: Any) -> None:
            schedulers(self)
            send()

        BaseModel.setup_schedulers = setup_schedulers

    path = write_yaml(tmp_path / "o.yml", options)
    status, line = interrupted(tmp_path / "before", ["train", "-opt", path], while_building)
    assert (status, line) == (130, "srq: stopped before a state was saved; the same command starts again")
    status, line = interrupted(tmp_path / "after", ["train", "-opt", path], at_image(9))  # the third validation
    assert (status, line) == (130, "srq: stopped after the last iteration; the trained network is saved")
    assert (tmp_path / "after" / "experiments/tiny/models/net_g_latest.pth").exists()
