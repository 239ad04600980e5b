"""``srq report``: what a training run did, as one HTML page with curves, histograms, errors and images."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from srq_nni.cli.parser import Parser


def main(argv: Sequence[str]) -> None:
    """Write the report that ``argv`` asks for and print where it is."""
    parser = Parser("report", __doc__)
    parser.add_argument("experiment", help="folder of a run, experiments/NAME")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where to write; EXPERIMENT/report if not given")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="validation images to show (default: 8)")
    parser.add_debug()
    args = parser.parse_args(argv)

    from srq_nni.report import write_report

    sys.stdout.write(f"{write_report(args.experiment, args.output, images=args.images)}\n")
