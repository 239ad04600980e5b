"""Running a command that must be refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from srq_nni.cli.main import main


@pytest.fixture
def refused(work_folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs ``srq`` in an empty folder, checks how it ended, and returns its one line."""

    def run(*arguments: str) -> str:
        before = sorted(work_folder.rglob("*"))
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        captured = capsys.readouterr()
        assert ended.value.code == 2
        assert captured.err.startswith("srq: error: "), captured.err
        assert captured.err.count("\n") == 1 and captured.err.endswith("\n"), captured.err
        assert "Traceback" not in captured.err + captured.out
        assert sorted(work_folder.rglob("*")) == before, "something was written"
        return captured.err.removeprefix("srq: error: ").rstrip("\n")

    return run
