"""Bars appear on a terminal, with the time that is left, and nowhere else."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from srq_nni.cli.main import main
from srq_nni.progress import track
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
