"""Folders of earlier runs: each goes to a name of its own, however soon the next one comes."""

from __future__ import annotations

from pathlib import Path

import basicsr.utils
import pytest
from basicsr.utils import misc

from srq_nni.models import archive


def test_three_runs_within_one_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(basicsr.utils, "get_time_str", lambda: "20261125_143114")
    folder = tmp_path / "tiny"
    for run in ("first", "second", "third", "fourth"):
        archive.make_folder(str(folder))
        assert not list(folder.iterdir())
        (folder / run).touch()
    where = {path.name: folder.name for folder in tmp_path.iterdir() for path in folder.iterdir()}
    assert where == {
        "first": "tiny_archived_20261125_143114",
        "second": "tiny_archived_20261125_143114_2",
        "third": "tiny_archived_20261125_143114_3",
        "fourth": "tiny",
    }
    assert f"Path already exists. Rename it to {folder}_archived_20261125_143114_2" in capsys.readouterr().out


def test_experiments_are_made_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import basicsr.train

    monkeypatch.setattr(misc, "mkdir_and_rename", None)
    monkeypatch.setattr(basicsr.train, "mkdir_and_rename", None)
    monkeypatch.setattr(basicsr.utils, "get_time_str", lambda: "20261125_143114")
    archive.install()
    folders = {"experiments_root": str(tmp_path / "e"), "models": str(tmp_path / "e/models")}
    for _ in range(3):
        basicsr.train.make_exp_dirs({"is_train": True, "path": folders})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "e",
        "e_archived_20261125_143114",
        "e_archived_20261125_143114_2",
    ]
    assert basicsr.train.mkdir_and_rename is archive.make_folder
