"""Bars appear on a terminal, with the time that is left, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from srq_nni.cli.main import main
from srq_nni.compression.evaluator import LoopEvaluator
from srq_nni.progress import Reported, layers_run, track
from tests.compression.doors import Loop, batches, make, network
from tests.sr_data import float_checkpoint, train_options, write_yaml
from tests.terminals import standard_error, terminal


class Items(list[int]):
    dataset = "of these"


def test_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as screen:
        tracked = track(Items([1, 2, 3]), "Counting", "stone")
        assert list(tracked) == [1, 2, 3] and len(tracked) == 3 and tracked.dataset == "of these"
    assert screen.shows("Counting:", "0/3", "<", "stone")


@pytest.mark.parametrize("size", [(0, 0), (80, 0), (20, 5)])
def test_terminals_of_containers_are_drawn_on(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """They say that they have no columns and no lines; a narrow one gets a narrow bar."""
    with terminal(monkeypatch, *size) as screen:
        list(track([1, 2], "Counting"))
    assert screen.shows("Count")


def test_silent_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter([1, 2]), "Counting")) == [1, 2]
    with Reported("Counting") as reported, layers_run(torch.nn.Conv2d(1, 1, 1), 1, "Running"):
        reported(0, 2)
    assert capsys.readouterr().err == ""


def test_work_that_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bar goes on where a resumed run does, neither comes late nor stays, and begins anew with other work."""
    with terminal(monkeypatch) as screen:
        reported = Reported("Calibrating", "iteration")
        reported(1, 3)
        assert reported._bar is not None and reported._bar.n == 1
        reported(0, 7)
        assert (reported._bar.n, reported._bar.total) == (0, 7)
        for iteration in range(2, 6):
            reported(iteration, 3)
        assert reported._bar is None
    assert screen.shows("Calibrating:", "/3", "iteration")
    with terminal(monkeypatch) as screen:
        Reported("Calibrating")(0, 0)
        Reported("Calibrating")(3, 3)
    assert screen.text == ""


def test_layers_of_copies_count_and_others_do_not_run_over(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    with terminal(monkeypatch) as screen, layers_run(model, 1, "Running"):
        for _ in range(2):
            model(torch.zeros(1, 1, 2, 2))
    assert screen.shows("Running:", "0/2", "layer") and not screen.shows("3/2")
    assert not torch.nn.modules.module._global_forward_hooks


@pytest.mark.parametrize("method", ["pams", "ddtb"])
@pytest.mark.parametrize("shown", [True, False])
def test_nni_shows_calibration(method: str, shown: bool, photo_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [{"wiring": "paper", "quant_dtype": "int4"}]
    quantizer = make(method, network(), entries, LoopEvaluator(Loop(batches(photo_folders))))
    with standard_error(monkeypatch, is_terminal=shown) as screen:
        quantizer.compress(max_steps=4, max_epochs=None)
    assert screen.shows("Calibrating:", "0/2") == shown
    assert quantizer.clock.watch is None


@pytest.mark.parametrize("shown", [True, False])
def test_a_run_shows_calibration_and_validation(
    photo_folders: Path, tmp_path: Path, work_folder: Path, monkeypatch: pytest.MonkeyPatch, shown: bool
) -> None:
    options: dict[str, Any] = train_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))
    options["train"]["total_iter"] = 3
    with standard_error(monkeypatch, is_terminal=shown) as screen:
        main(["train", "-opt", write_yaml(tmp_path / "o.yml", options)])
    for words in (("Checking HR:", "0/4"), ("Calibrating:", "0/2"), ("Validating photos:", "0/4")):
        assert screen.shows(*words) == shown, words
