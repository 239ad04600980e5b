"""A pseudo-terminal in place of standard error, and what a user would have seen there."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class Screen:
    """The text that was written to the terminal, carriage returns as line ends."""

    text = ""

    def shows(self, *words: str) -> bool:
        """Whether one line, a bar at some moment, has all the words."""
        return any(all(word in line for word in words) for line in self.text.splitlines())


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 120, lines: int = 40) -> Iterator[Screen]:
    """Let standard error be a terminal in this block; afterwards the screen has its text."""
    screen, (ours, theirs) = Screen(), pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    reader = threading.Thread(target=_read, args=(ours, screen))
    reader.start()  # a terminal that nobody reads stops its writer
    try:
        with monkeypatch.context() as patch, open(theirs, "w", buffering=1) as stderr:
            patch.setattr(sys, "stderr", stderr)
            yield screen
    finally:
        reader.join()
        os.close(ours)


@contextmanager
def standard_error(monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool) -> Iterator[Screen]:
    """Let standard error be a terminal, or a file, in this block; afterwards the screen has what was written."""
    if is_terminal:
        with terminal(monkeypatch) as screen:
            yield screen
        return
    screen = Screen()
    with monkeypatch.context() as patch, io.StringIO() as file:
        patch.setattr(sys, "stderr", file)
        yield screen
        screen.text = file.getvalue()


def _read(descriptor: int, screen: Screen) -> None:
    content = bytearray()
    try:
        while chunk := os.read(descriptor, 4096):
            content += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    screen.text = content.decode().replace("\r", "\n")
