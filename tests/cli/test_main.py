"""How a command ends: the status, and the one line on the terminal."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from srq_nni.cli.main import exit_with
from srq_nni.errors import OptionError, Stopped, WriteError
from tests.sr_data import REPOSITORY


def ended(error: BaseException, capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[object, str]:
    def command(arguments: Sequence[str]) -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        exit_with(command, argv)
    return caught.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (OptionError("bits: 9"), 2, "srq: error: bits: 9\n"),
        (WriteError("'a.pth' cannot be written"), 2, "srq: error: 'a.pth' cannot be written\n"),
        (
            OSError(errno.EROFS, "Read-only file system", "experiments"),
            2,
            "srq: error: 'experiments': Read-only file system; give a folder on a disk that is not read-only\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            2,
            "srq: error: No space left on device; free space on that disk\n",
        ),
        (
            FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0.\n  Traceback\nno file a.png"),
            2,
            "srq: error: no file a.png; mend that, or give another path\n",
        ),
        (OSError(), 2, "srq: error: OSError; mend that, or give another path\n"),
        (MemoryError(), 2, "srq: error: there is not enough memory; give a smaller batch, crop, image or tile\n"),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            2,
            "srq: error: there is not enough memory on the GPU; give a smaller batch, crop, image or tile\n",
        ),
        (KeyboardInterrupt(), 130, "srq: stopped\n"),
        (Stopped("stopped after iteration 3"), 130, "srq: stopped after iteration 3\n"),
        (Stopped("stopped", 143), 143, "srq: stopped\n"),
    ],
)
def test_status_and_line(error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(error, capsys) == (status, line)


@pytest.mark.parametrize("error", [OptionError("bits: 9"), OSError(errno.ENOSPC, "full"), MemoryError()])
def test_debug_shows_the_traceback(error: Exception) -> None:
    def command(arguments: Sequence[str]) -> None:
        raise error

    with pytest.raises(type(error)):
        exit_with(command, ["--debug"])


def test_a_bug_is_not_hidden() -> None:
    """What nobody foresaw keeps its traceback, with which it can be reported."""

    def command(arguments: Sequence[str]) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        exit_with(command, [])


def test_a_full_disk_prints_no_tracebacks_of_threads_and_logging(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(error: Exception) -> None:
        raise error

    def command(arguments: Sequence[str]) -> None:
        logger = logging.Logger("full")
        logger.addHandler(handler)
        logger.warning("a line for a full disk")
        for error in (OSError(errno.ENOSPC, "full"), ValueError("a bug")):
            thread = threading.Thread(target=fail, args=(error,))
            thread.start()
            thread.join()

    handler = logging.StreamHandler(type("Full", (), {"write": lambda *_: fail(OSError(errno.ENOSPC, "full"))})())
    seen: list[type[BaseException]] = []
    hook, threading.excepthook = threading.excepthook, lambda arguments: seen.append(arguments.exc_type)
    try:
        exit_with(command, [])
    finally:
        threading.excepthook = hook
    assert capsys.readouterr().err == "" and seen == [ValueError] and logging.raiseExceptions


def test_a_closed_pipe_ends_quietly() -> None:
    code = "from srq_nni.cli.main import exit_with; exit_with(lambda _: [print('line') for _ in range(100000)], [])"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={"PATH": "", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(5)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(timeout=120) == 141
    process.stderr.close()


@pytest.mark.parametrize(
    ("encoding", "line"), [("utf-8:strict", "caf\\udce9 é.png"), ("ascii:strict", "caf\\udce9 \\xe9.png")]
)
def test_names_that_the_terminal_cannot_show_are_escaped(encoding: str, line: str) -> None:
    code = (
        "import os, sys; from srq_nni.cli.main import exit_with; "
        "exit_with(lambda _: sys.stdout.write(os.fsdecode(b'caf\\xe9 \\xc3\\xa9.png')), [])"
    )
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", code],
        env={"PATH": "", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert (done.stdout.decode(), done.stderr.decode(), done.returncode) == (line, "", 0)
