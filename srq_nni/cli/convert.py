"""``srq convert``: checkpoints of EDSR-PyTorch, PAMS and DDTB into those of BasicSR and srq-nni, and back."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from srq_nni.cli.parser import Parser

PROJECTS = "edsr-pytorch, pams or ddtb"


def main(argv: Sequence[str]) -> None:
    """Convert as ``argv`` says and print the blocks of the option file that fit."""
    parser = Parser("convert", __doc__)
    parser.add_argument("checkpoint", metavar="IN", help="checkpoint to read")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="file to write")
    ways = parser.add_mutually_exclusive_group(required=True)
    ways.add_argument("--from", dest="source", metavar="PROJECT", help=f"project that wrote IN: {PROJECTS}")
    ways.add_argument("--to", dest="target", metavar="PROJECT", help=f"project that shall read OUT: {PROJECTS}")
    parser.add_argument("--bits", type=int, help="of a student, its k_bits; no checkpoint says them")
    parser.add_argument("--res-scale", type=float, help="of EDSR, if not that of the published network of this size")
    parser.add_argument(
        "--img-range", type=float, help="255 for images in [0, 255], 1 for [0, 1]; if the file does not say"
    )
    parser.add_argument(
        "--rgb-mean", type=float, nargs=3, metavar=("R", "G", "B"), help="of EDSR, if the file lacks it"
    )
    parser.add_argument("--body-only", action="store_true", help="leave out the tail of an RDN that has one of its own")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_debug()
    args = parser.parse_args(argv)

    from srq_nni.conversion import convert, convert_back
    from srq_nni.errors import OptionError

    shared = {"img_range": args.img_range, "rgb_mean": args.rgb_mean, "overwrite": args.overwrite}
    if args.source is not None:
        own = {"bits": args.bits, "res_scale": args.res_scale, "body_only": args.body_only}
        done = convert(args.checkpoint, args.output, args.source, **own, **shared)
    else:
        for option, value in (
            ("bits", args.bits),
            ("res-scale", args.res_scale),
            ("body-only", args.body_only or None),
        ):
            if value is not None:
                raise OptionError(f"--{option} belongs to --from; leave it out with --to")
        done = convert_back(args.checkpoint, args.output, args.target, **shared)
    sys.stdout.write(f"{done}\n")
