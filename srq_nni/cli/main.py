"""``srq COMMAND ...``, the same as ``python -m srq_nni COMMAND ...``."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NoReturn

from srq_nni.atomic import REMEDIES
from srq_nni.errors import SRQError, did_you_mean

COMMANDS = {
    "train": "train a network from a BasicSR option file",
    "test": "test a network from a BasicSR option file",
    "schema": "write the JSON schema of option files, for editors",
    "summary": "show bits, coverage, size, operations and engines before a run",
    "convert": "turn checkpoints of EDSR-PyTorch, PAMS and DDTB into ours, and back",
    "equalize": "write float weights that compute the same and round better",
    "search": "choose the bits of each convolution within a limit",
    "export": "write a trained checkpoint as an integer ONNX file",
    "pack": "write a trained checkpoint as a small file of packed weights",
    "bench": "measure a network in float32, bfloat16 and INT8 on every engine",
    "upscale": "enlarge images with a checkpoint or an ONNX file",
    "report": "show what a training run did, as one HTML page",
}


def usage() -> str:
    """Return the list of commands."""
    lines = [f"  {name:<8} {text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: srq COMMAND ...", "", "commands:", *lines, "", "srq COMMAND --help shows its options"])


def exit_with(command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
    """Run a command; on an error of the user's or of the disk end with status 2 and one sentence."""
    debug = "--debug" in argv
    if isinstance(sys.stdout, io.TextIOWrapper):  # as Python does with stderr: names of files need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _warnings(), nullcontext() if debug else _no_tracebacks():
            command(argv)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (SRQError, OSError, MemoryError, RuntimeError) as error:
        message = _sentence(error)
        if debug or message is None:
            raise
        _refuse(message)
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"srq: {stop}\n" if str(stop) else "srq: stopped\n")
        sys.exit(getattr(stop, "status", 130))


def _refuse(message: str) -> NoReturn:
    """Print one line, whatever characters a file or an argument has brought into it, and end with status 2."""
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message)
    sys.stderr.write(f"srq: error: {line}\n")
    sys.exit(2)


def _sentence(error: Exception) -> str | None:
    """Return the sentence for an error that is none of the program's, else None."""
    if isinstance(error, SRQError):
        return str(error)
    if isinstance(error, OSError):
        named = f"'{error.filename}': " if error.filename is not None else ""
        lines = (error.strerror or str(error)).strip().splitlines() or [type(error).__name__]
        return f"{named}{lines[-1]}; {REMEDIES.get(error.errno or 0, 'mend that, or give another path')}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's, of a GPU
        where = "memory" if isinstance(error, MemoryError) else "memory on the GPU"
        return f"there is not enough {where}; give a smaller batch, crop, image or tile"
    return None


class _Warnings(logging.Handler):
    """Warnings of the library in the form of a command's, above its bars."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(f"srq: warning: {record.getMessage()}", file=sys.stderr)


@contextmanager
def _warnings() -> Iterator[None]:
    logger, handler = logging.getLogger("srq_nni"), _Warnings(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def _no_tracebacks() -> Iterator[None]:
    """Keep logging and the threads of TensorBoard from printing tracebacks when the disk is full."""
    printing, hook = logging.raiseExceptions, threading.excepthook

    def hook_but_of_disks(arguments: threading.ExceptHookArgs) -> None:
        if not isinstance(arguments.exc_value, OSError):
            hook(arguments)

    logging.raiseExceptions, threading.excepthook = False, hook_but_of_disks
    try:
        yield
    finally:
        logging.raiseExceptions, threading.excepthook = printing, hook


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(usage() + "\n")
        sys.exit(0 if argv else 2)
    name, *rest = argv
    if name == "--version":
        from srq_nni import __version__

        sys.stdout.write(f"srq {__version__}\n")
        return
    if name not in COMMANDS:
        _refuse(f"command '{name}' is not known; allowed are {', '.join(COMMANDS)}{did_you_mean(name, COMMANDS)}")
    exit_with(importlib.import_module(f"srq_nni.cli.{name}").main, rest)
