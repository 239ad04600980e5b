"""``srq COMMAND ...``, the same as ``python -m srq_nni COMMAND ...``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from srq_nni.errors import SRQError, did_you_mean

COMMANDS = {
    "train": "train a network from a BasicSR option file",
    "test": "test a network from a BasicSR option file",
    "export": "write a trained checkpoint as an integer ONNX file",
}


def usage() -> str:
    """Return the list of commands."""
    lines = [f"  {name:<8} {text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: srq COMMAND ...", "", "commands:", *lines, "", "srq COMMAND --help shows its options"])


def exit_with(command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
    """Run a command; end with status 2 and one sentence on an error of the user's, with 130 on Ctrl-C."""
    try:
        command(argv)
    except SRQError as error:
        if "--debug" in argv:
            raise
        sys.stderr.write(f"srq: error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("srq: stopped; the same command with --auto_resume continues a training run\n")
        sys.exit(130)


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
        sys.stderr.write(f"srq: error: command '{name}' is not known; allowed are {', '.join(COMMANDS)}")
        sys.stderr.write(f"{did_you_mean(name, COMMANDS)}\n")
        sys.exit(2)
    exit_with(importlib.import_module(f"srq_nni.cli.{name}").main, rest)
