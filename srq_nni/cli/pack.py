"""``srq pack``: a trained checkpoint as a small file, its quantized weights as packed codes of 2 to 8 bits."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from srq_nni.cli.parser import Parser


def main(argv: Sequence[str]) -> None:
    """Pack as ``argv`` says and print the sizes."""
    parser = Parser("pack", __doc__)
    parser.add_argument("checkpoint", help="checkpoint of a QuantSRModel run")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.safetensors", help="file to write")
    parser.add_debug()
    args = parser.parse_args(argv)

    from srq_nni.packed import pack

    sys.stdout.write(f"{pack(args.checkpoint, args.output)}\n")
