"""What ``srq train`` and ``srq test`` share: arguments as BasicSR users know them, checks, then BasicSR's pipeline."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from srq_nni import compat
from srq_nni.cli.parser import Parser


def parser_for(command: str, description: str) -> Parser:
    """Return the parser of ``srq train`` or ``srq test``: BasicSR's own flags."""
    parser = Parser(command, description)
    parser.add_argument("-opt", required=True, metavar="FILE.yml", help="option file")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm"], default="none", help="job launcher")
    parser.add_argument("--auto_resume", action="store_true", help="continue from the newest training state")
    parser.add_debug("short intervals, name 'debug_..', tracebacks")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--force_yml", nargs="+", default=[], metavar="KEY:KEY=VALUE", help="change option values")
    return parser


def run(command: str, argv: Sequence[str], pipeline: Callable[[str], None], *, is_train: bool) -> None:
    """Check the options, then run BasicSR's ``pipeline`` with the current directory as root path.

    Raises:
        SRQError: before anything is written, if an option, a checkpoint or an image is wrong.
    """
    from srq_nni.models import (
        archive,
        cpu_distributed,
        data_order,
        interruption,
        option_copy,
        progress_bars,
        resume,
        saving,
        validation,
    )
    from srq_nni.models.options import loader_with, read_options
    from srq_nni.models.preflight import check_options

    description = "Train" if is_train else "Test"
    args = parser_for(command, f"{description} a network from a BasicSR option file.").parse_args(
        compat.normalise_argv(argv)
    )
    cpu_distributed.enable()
    for warning in check_options(read_options(args.opt, args.force_yml), is_train=is_train, launcher=args.launcher):
        sys.stderr.write(f"srq: warning: {warning}\n")
    compat.patch_options(loader_with(args.force_yml))
    archive.install()
    validation.install()
    if is_train:
        resume.install()
        data_order.install()
        option_copy.install(shlex.join(["srq", command, *argv]), args.force_yml)
    forwarded = ["-opt", args.opt, "--launcher", args.launcher, "--local_rank", str(args.local_rank)]
    forwarded += ["--auto_resume"] * args.auto_resume + ["--debug"] * args.debug
    sys.argv = [f"srq {command}", *forwarded]
    again = shlex.join(["srq", command, *(word for word in argv if word != "--auto_resume"), "--auto_resume"])
    if args.launcher != "none":  # which only the user knows in full
        again = "the same command" if args.auto_resume else "the same command and --auto_resume"
    with ExitStack() as stack:
        stack.enter_context(saving.atomic())
        stack.enter_context(progress_bars.shown())
        if is_train:
            stack.enter_context(interruption.resumable(again))
        pipeline(str(Path.cwd()))
