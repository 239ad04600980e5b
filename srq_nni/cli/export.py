"""``srq export``: a trained checkpoint as an integer ONNX file for one engine."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from srq_nni.cli.parser import Parser

ENGINES = ("openvino", "onnxruntime", "tensorrt")


def main(argv: Sequence[str]) -> None:
    """Export as ``argv`` says and print what will run in integers."""
    parser = Parser("export", __doc__)
    parser.add_argument("checkpoint", help="checkpoint of a QuantSRModel run, or a packed file")
    parser.add_argument("-o", "--output", required=True, metavar="MODEL.onnx", help="file to write")
    parser.add_argument(
        "--engine", default="openvino", metavar="ENGINE", help=f"one of {', '.join(ENGINES)} (default: openvino)"
    )
    parser.add_debug()
    args = parser.parse_args(argv)

    from srq_nni.speedup import export_onnx

    sys.stdout.write(f"{export_onnx(args.checkpoint, args.output, engine=args.engine)}\n")
