"""Runs of ``srq train`` in a process that is killed with SIGKILL: at an iteration, or at a point of writing a file.

The process is forked from the one that tests, so that it starts at once; it must have one thread.
"""

from __future__ import annotations

import hashlib
import io
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from basicsr.models.base_model import BaseModel

from srq_nni.cli.main import main

MODELS, STATES = Path("experiments/tiny/models"), Path("experiments/tiny/training_states")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Status(int):
    """An exit status, or minus the signal that ended a process; a failed assertion shows the traceback, too."""

    traceback: str = ""

    def __repr__(self) -> str:
        return f"{int(self)} {self.traceback}".rstrip()


def forked(*actions: Callable[[], None]) -> list[Status]:
    """Run each action in a forked process, all at once; return how each ended."""
    children = []
    for action in actions:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                action()
            except BaseException:
                os.write(writer, traceback.format_exc().encode()[-4000:])  # less than a pipe holds
                os._exit(1)
            os._exit(0)
        os.close(writer)
        children.append((child, reader))
    return [_ended(*child) for child in children]


def _ended(child: int, reader: int) -> Status:
    status = Status(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os.set_blocking(reader, False)  # a process that outlives the child may hold the other end
    with open(reader, "rb", buffering=0) as file:
        status.traceback = (file.read() or b"").decode(errors="replace")
    return status


def train(folder: Path, options: str, *flags: str, kill: tuple[str, Any] | None = None) -> int:
    """Run ``srq train`` in ``folder`` in a process of its own, and kill it where ``kill`` says.

    Args:
        kill: ``("iteration", n)``, before the step of iteration n; or of a file by its name: ``("halfway", name)``,
            when half of it is written, ``("unnamed", name)``, when all of it is written but not yet under its name,
            ``("written", name)``, as soon as it is there.
    """
    folder.mkdir(exist_ok=True)

    def action() -> None:
        os.chdir(folder)
        if kill is not None:
            place, what = kill
            if place == "iteration":
                die_at_iteration(what)
            elif place == "halfway":
                _halfway(what)
            else:
                _around_renaming(what, written=place == "written")
        main(["train", "-opt", options, *flags])

    return forked(action)[0]


def die_at_iteration(iteration: int) -> None:
    """Let this process die before the step of an iteration."""
    update = BaseModel.update_learning_rate

    def update_learning_rate(self: Any, current_iter: int, warmup_iter: int = -1) -> None:
        if current_iter == iteration:
            die()
        update(self, current_iter, warmup_iter)

    BaseModel.update_learning_rate = update_learning_rate


def _halfway(name: str) -> None:
    save = torch.save

    def save_half(content: Any, file: Any, *args: Any, **settings: Any) -> None:
        path = str(getattr(file, "name", file))
        if name not in path:
            save(content, file, *args, **settings)
            return
        whole = io.BytesIO()
        save(content, whole)
        half = whole.getvalue()[: len(whole.getvalue()) // 2]
        os.write(os.open(path, os.O_WRONLY | os.O_CREAT), half)
        die()

    torch.save = save_half


def _around_renaming(name: str, *, written: bool) -> None:
    replace = os.replace

    def replace_and_die(source: Any, target: Any) -> None:
        if Path(target).name != name:
            replace(source, target)
            return
        if written:
            replace(source, target)
        die()

    os.replace = replace_and_die


def digest(folder: Path, last: int) -> str:
    """Return the hash of all bits that a run ends with: network, average, optimizers and schedulers."""
    hashes = hashlib.sha256()
    for file in (MODELS / "net_g_latest.pth", STATES / f"{last}.state"):
        content = torch.load(folder / file, weights_only=True)
        content.pop("seed", None)
        _feed(hashes, content)
    return hashes.hexdigest()


def _feed(hashes: Any, value: Any) -> None:
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            hashes.update(str(key).encode())
            _feed(hashes, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(hashes, item)
    elif isinstance(value, torch.Tensor):
        hashes.update(str((value.dtype, value.shape)).encode() + value.cpu().contiguous().numpy().tobytes())
    else:
        hashes.update(repr(value).encode())
