"""``srq equalize``: float weights that compute the same and lose less when they are quantized."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from srq_nni.cli.parser import Parser


def main(argv: Sequence[str]) -> None:
    """Equalize as ``argv`` says; print what it did and how to train from it."""
    parser = Parser("equalize", __doc__)
    parser.add_argument("-opt", required=True, metavar="FILE.yml", help="option file with a quantization block")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.pth", help="float weights to write")
    parser.add_argument("--force_yml", nargs="+", default=[], metavar="KEY:KEY=VALUE", help="change option values")
    parser.add_argument("--iterations", type=int, default=150, metavar="N", help="steps of the search (150)")
    parser.add_argument(
        "--untrained", action="store_true", help="for use without training: what rounding weights costs counts, too"
    )
    parser.add_argument("--images", default="train", metavar="PHASE", help="dataset to measure on (train)")
    parser.add_argument("--count", type=int, default=128, metavar="N", help="number of images (128)")
    parser.add_argument("--size", type=int, default=48, metavar="N", help="side of their middle part, LR pixels (48)")
    parser.add_debug()
    args = parser.parse_args(argv)

    from srq_nni.atomic import file_to_write
    from srq_nni.models.equalized_weights import equalize_weights, settings_to_train
    from srq_nni.models.options import read_options

    opt = read_options(args.opt, args.force_yml)
    file_to_write(args.output, args.opt)
    done = equalize_weights(
        opt,
        args.output,
        iterations=args.iterations,
        untrained=args.untrained,
        phase=args.images,
        count=args.count,
        size=args.size,
    )
    settings = [*args.force_yml, *settings_to_train(opt, args.output)]
    command = shlex.join(["srq", "train", "-opt", args.opt, "--force_yml", *settings])
    sys.stdout.write(f"{done}\nwrote {args.output}\ntrain: {command}\n")
