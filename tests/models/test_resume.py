"""Which checkpoint a run goes on from, and which random numbers its training process then draws."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from srq_nni.errors import CheckpointError
from srq_nni.models import resume
from srq_nni.models.resume import load_resume_state, seed_iteration


@pytest.fixture
def opt(tmp_path: Path) -> dict[str, Any]:
    states = tmp_path / "elsewhere" / "training_states"
    states.mkdir(parents=True)
    (tmp_path / "models").mkdir()
    path = {"training_states": str(states), "models": str(tmp_path / "models"), "resume_state": None}
    return {"auto_resume": True, "num_gpu": 0, "network_g": {}, "path": path}


def write(opt: dict[str, Any], *iterations: int) -> Path:
    folder = Path(opt["path"]["training_states"])
    for iteration in iterations:
        state = {"epoch": 0, "iter": iteration, "optimizers": [], "schedulers": []}
        torch.save(state, folder / f"{iteration}.state")
        torch.save({"params": {}}, Path(opt["path"]["models"]) / f"net_g_{iteration}.pth")
    return folder


def test_resume_takes_the_newest_state_below_the_root_path(
    opt: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By number, not by name; on the CPU; wherever the working directory is; and the network goes with it."""
    monkeypatch.chdir(tmp_path)
    folder = write(opt, 900, 1000, 80)
    state = load_resume_state(opt)
    assert state is not None and state["iter"] == 1000
    assert opt["path"]["resume_state"] == str(folder / "1000.state")
    assert opt["path"]["pretrain_network_g"] == str(tmp_path / "models" / "net_g_1000.pth")


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "folder"])
def test_resume_passes_over_a_state_that_cannot_be_read(opt: dict[str, Any], damage: str) -> None:
    folder = write(opt, 10, 20)
    last = folder / "20.state"
    if damage == "folder":
        last.unlink()
        last.mkdir()
    else:
        content = {"truncated": last.read_bytes()[:-100], "empty": b"", "text": b"half a file"}[damage]
        last.write_bytes(content)
    state = load_resume_state(opt)
    assert state is not None and state["iter"] == 10
    assert opt["path"]["resume_state"] == str(folder / "10.state")


def test_resume_with_nothing_to_resume_starts_anew(opt: dict[str, Any]) -> None:
    assert load_resume_state(opt) is None
    Path(opt["path"]["training_states"]).rmdir()
    Path(opt["path"]["models"]).rmdir()
    assert load_resume_state(opt) is None
    opt["auto_resume"] = False
    assert load_resume_state(opt) is None
    assert opt["path"]["resume_state"] is None


def test_other_files_beside_the_states_do_not_disturb(opt: dict[str, Any]) -> None:
    folder = write(opt, 10)
    (folder / "best.state").write_text("mine")
    (folder / ".12.state.4711").write_text("left by a process that died")
    state = load_resume_state(opt)
    assert state is not None and state["iter"] == 10


def test_a_named_state_is_loaded_or_named(opt: dict[str, Any]) -> None:
    folder = write(opt, 10, 20)
    opt["auto_resume"] = False
    opt["path"]["resume_state"] = str(folder / "10.state")
    state = load_resume_state(opt)
    assert state is not None and state["iter"] == 10
    network = Path(opt["path"]["models"]) / "net_g_10.pth"
    network.unlink()
    with pytest.raises(CheckpointError) as caught:
        load_resume_state(opt)
    assert str(caught.value) == (
        f"path: resume_state: training state '{folder / '10.state'}' has no network to go on with: checkpoint "
        f"'{network}' does not exist; give the path of a .pth file; did you mean 'net_g_20.pth'?"
    )
    (folder / "10.state").write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        load_resume_state(opt)
    assert str(caught.value).startswith(f"path: resume_state: training state '{folder / '10.state'}' cannot be read (")


def test_a_state_runs_no_code(opt: dict[str, Any], tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "trace",)

    folder = write(opt, 10, 20)
    torch.save({"iter": 20, "x": Malicious()}, folder / "20.state")
    state = load_resume_state(opt)
    assert state is not None and state["iter"] == 10
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("damage", ["missing", "truncated", "folder"])
def test_a_state_without_its_network_is_passed_over(
    opt: dict[str, Any], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(opt, 10, 20)
    network = Path(opt["path"]["models"]) / "net_g_20.pth"
    content = network.read_bytes()
    network.unlink()
    if damage == "truncated":
        network.write_bytes(content[: len(content) // 2])
    elif damage == "folder":
        network.mkdir()
    with caplog.at_level(logging.WARNING):
        state = load_resume_state(opt)
    assert state is not None and state["iter"] == 10
    assert opt["path"]["pretrain_network_g"].endswith("net_g_10.pth")
    assert "has no network to go on with" in caplog.text and "trying the state before it" in caplog.text


def test_every_network_counts_but_those_that_are_not_resumed(opt: dict[str, Any]) -> None:
    write(opt, 10, 20)
    torch.save({"params": {}}, Path(opt["path"]["models"]) / "net_d_10.pth")
    opt["network_d"] = {}
    state = load_resume_state(opt)
    assert state is not None and state["iter"] == 10
    opt["path"]["ignore_resume_networks"] = ["network_d"]
    state = load_resume_state(opt)
    assert state is not None and state["iter"] == 20


@pytest.mark.parametrize(("rank", "gone"), [(0, True), (1, False)])
def test_what_a_killed_process_was_writing_is_removed_once(opt: dict[str, Any], rank: int, gone: bool) -> None:
    folder, models = write(opt, 10), Path(opt["path"]["models"])
    leftovers = [folder / ".20.state.4711.part", models / ".net_g_20.pth.4711.part"]
    for file in leftovers:
        file.write_bytes(b"half")
    load_resume_state({**opt, "rank": rank})
    assert [file.exists() for file in leftovers] == [not gone] * 2
    assert (models / "net_g_10.pth").exists() and (folder / "10.state").exists()


def draw() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def test_an_iteration_draws_the_same_whatever_was_drawn_before() -> None:
    seed_iteration(3, 0, 7)
    first = draw()
    draw()
    seed_iteration(3, 0, 7)
    assert draw() == first
    others = []
    for seed, rank, iteration in [(4, 0, 7), (3, 1, 7), (3, 0, 8), (0, 0, 0)]:
        seed_iteration(seed, rank, iteration)
        others.append(draw())
    numbers = {number for drawn in [first, *others] for number in drawn}
    assert len(numbers) == 15, "every seed, rank and iteration has numbers of its own"


def test_it_is_seeded_before_the_model_sees_data(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[int] = []

    class Model:
        def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
            rates.append(current_iter)

    model = resume._seeding_iterations(lambda opt: Model())({"manual_seed": 5, "rank": 1})
    drawn = []
    for iteration in (1, 2, 1):
        model.update_learning_rate(iteration, warmup_iter=-1)
        drawn.append(draw())
    assert drawn[0] == drawn[2] != drawn[1]
    assert rates == [1, 2, 1]
