"""``srq summary``: what a network will be before it is trained or run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from srq_nni.atomic import file_to_write
from srq_nni.cli.parser import Parser
from srq_nni.errors import OptionError


def main(argv: Sequence[str]) -> None:
    """Print the summary that ``argv`` asks for."""
    parser = Parser(
        "summary", "Show every convolution with its bits, the engines that run it in INT8, and what they add up to."
    )
    parser.add_argument(
        "file", nargs="?", metavar="FILE", help="checkpoint of ours, packed or not, or an ONNX file (.onnx)"
    )
    parser.add_argument("-opt", metavar="FILE.yml", help="option file; its weights and images need not exist")
    parser.add_argument("--force_yml", nargs="+", default=[], metavar="KEY:KEY=VALUE", help="change option values")
    parser.add_argument("--all", action="store_true", help="one row a convolution, none for several that are alike")
    parser.add_argument("--no-probe", action="store_true", help="with -opt: do not run steps to estimate the time")
    parser.add_argument("--json", metavar="OUT.json", help="write every number to this file, too")
    parser.add_debug()
    args = parser.parse_args(argv)
    if (args.opt is None) == (args.file is None):
        raise OptionError("srq summary wants one thing to look at; give -opt FILE.yml, a checkpoint or an ONNX file")
    if args.opt is None and (args.force_yml or args.no_probe):
        given = "--force_yml" if args.force_yml else "--no-probe"
        raise OptionError(f"{given} has no meaning without -opt; leave it out")

    from srq_nni import summary
    from srq_nni.speedup.export import write_atomically
    from srq_nni.speedup.onnx_file import is_onnx
    from srq_nni.summary.table import as_data, render

    looked_at = Path(args.opt or args.file)
    if args.opt is None and looked_at.suffix.lower() in (".yml", ".yaml"):
        raise OptionError(f"'{looked_at}' is an option file; write -opt {looked_at}")
    target = file_to_write(args.json, looked_at, ending=".json") if args.json else None
    if args.opt is not None:
        result = summary.summarize_options(args.opt, args.force_yml, measure_training=not args.no_probe)
    elif is_onnx(looked_at):
        result = summary.summarize_onnx(args.file)
    else:
        result = summary.summarize_checkpoint(args.file)
    sys.stdout.write(render(result, every_row=args.all) + "\n")
    if target is not None:
        write_atomically(target, (json.dumps(as_data(result), indent=1) + "\n").encode())
