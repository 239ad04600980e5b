"""``srq bench``: speed in float32, bfloat16 and INT8 on every engine, and the difference to the integer simulator."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from srq_nni.atomic import file_to_write
from srq_nni.cli.parser import Parser
from srq_nni.errors import OptionError


def parser() -> Parser:
    """Return the parser of ``srq bench``."""
    made = Parser("bench", __doc__)
    made.add_argument("model", metavar="MODEL", help="checkpoint of srq train, packed file or ONNX file")
    made.add_argument(
        "--engine", action="append", metavar="ENGINE", help="may be repeated (default: all that run here)"
    )
    made.add_argument("--size", default="128x128", metavar="HxW", help="height and width of the image (128x128)")
    made.add_argument("--repeats", type=int, default=9, metavar="N", help="calls of each that count (9)")
    made.add_argument("--threads", type=int, default=1, metavar="N", help="of the engines; 0 leaves it to them (1)")
    made.add_argument("--json", metavar="OUT", help="also write everything to this file")
    made.add_debug()
    return made


def main(argv: Sequence[str]) -> None:
    """Measure as ``argv`` says and print the table.

    Raises:
        SRQError: for wrong options or a model that does not run.
    """
    args = parser().parse_args(argv)
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", args.size)
    if size is None:
        raise OptionError(f"--size: {args.size!r} is not allowed; give height x width, such as 128x128")
    if args.threads < 0:
        raise OptionError(
            f"--threads: {args.threads} is not allowed; give a number from 1, or 0 for the engine's choice"
        )

    from srq_nni.speedup.bench import benchmark
    from srq_nni.speedup.export import write_atomically

    target = file_to_write(args.json, args.model, ending=".json") if args.json else None
    report = benchmark(
        args.model,
        engines=args.engine,
        size=(int(size[1]), int(size[2])),
        repeats=args.repeats,
        threads=args.threads or None,
    )
    sys.stdout.write(f"{report}\n")
    if target is not None:
        write_atomically(target, report.as_json().encode())
