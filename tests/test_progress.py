"""Bars appear on a terminal, with the time that is left, and nowhere else."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from srq_nni.cli.main import main
from srq_nni.compression.evaluator import LoopEvaluator
from srq_nni.progress import Calibration, track
from tests.compression.doors import Loop, batches, make, network
from tests.sr_data import float_checkpoint, train_options, write_yaml


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Items(list[int]):
    dataset = "of these"


def test_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    tracked = track(Items([1, 2, 3]), "Counting", "stone")
    assert list(tracked) == [1, 2, 3] and len(tracked) == 3 and tracked.dataset == "of these"
    shown = sys.stderr.getvalue()
    assert "Counting:" in shown and "0/3" in shown and "<" in shown and "stone" in shown


def test_silent_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter([1, 2]), "Counting")) == [1, 2]
    assert capsys.readouterr().err == ""


def test_the_bar_of_a_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on where a resumed run does, and neither comes late nor stays."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    shown = Calibration(3)
    shown.reached(1)
    assert shown._bar is not None and shown._bar.n == 1
    for iteration in range(2, 6):
        shown.reached(iteration)
    assert "Calibrating:" in sys.stderr.getvalue() and "/3" in sys.stderr.getvalue() and shown._bar is None
    monkeypatch.setattr(sys, "stderr", Terminal())
    Calibration(0).reached(0)
    Calibration(3).reached(3)
    assert sys.stderr.getvalue() == ""


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("method", ["pams", "ddtb"])
def test_nni_shows_calibration(
    method: str, terminal: bool, photo_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Terminal() if terminal else io.StringIO()
    entries = [{"wiring": "paper", "quant_dtype": "int4"}]
    quantizer = make(method, network(), entries, LoopEvaluator(Loop(batches(photo_folders))))
    monkeypatch.setattr(sys, "stderr", written)
    quantizer.compress(max_steps=4, max_epochs=None)
    assert ("Calibrating:" in written.getvalue()) == terminal
    assert ("0/2" in written.getvalue()) == terminal
    assert quantizer.clock.watch is None


@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_shows_calibration_and_validation(
    photo_folders: Path, tmp_path: Path, work_folder: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    options: dict[str, Any] = train_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))
    options["train"]["total_iter"] = 3
    written = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    main(["train", "-opt", write_yaml(tmp_path / "o.yml", options)])
    for words in ("Calibrating:", "0/2", "Validating photos:", "0/4"):
        assert (words in written.getvalue()) == terminal, words
