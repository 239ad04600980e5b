"""``srq upscale``: an image or a folder of images, enlarged by a network in an engine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from srq_nni.cli.parser import Parser

if TYPE_CHECKING:
    from srq_nni.speedup.upscale import Done, Job, Plan

RESUME = "stopped; finished images are whole, and the same command with --skip-existing goes on with the others"


def parser() -> Parser:
    """Return the parser of ``srq upscale``."""
    made = Parser("upscale", __doc__)
    made.add_argument("input", metavar="IN", help="image or folder of images")
    made.add_argument(
        "-m", "--model", required=True, metavar="MODEL", help="ONNX file, packed file or checkpoint of srq train"
    )
    made.add_argument("-o", "--output", required=True, metavar="OUT", help="image or folder to write")
    made.add_argument("--engine", metavar="ENGINE", help="openvino, onnxruntime or tensorrt (default: the file's own)")
    made.add_argument("--tile", type=int, metavar="N", help="pixels kept of each window; 0 for none (default: 256)")
    made.add_argument("--overlap", type=int, metavar="N", help="pixels around them (default: what the network sees)")
    made.add_argument("--threads", type=int, metavar="N", help="threads of the engine (default: its own choice)")
    made.add_argument(
        "--float-precision",
        metavar="P",
        help="of layers that are not quantized, on openvino: float32 (default), bfloat16-tail or bfloat16",
    )
    made.add_argument("--format", metavar="FORMAT", help="png, jpg, webp, tif or bmp for all results of a folder")
    made.add_argument("--skip-existing", action="store_true", help="leave out images whose result is already there")
    made.add_argument("--max-pixels", type=int, metavar="N", help="refuse larger images (default: 89478485)")
    made.add_argument(
        "--value-range", type=float, metavar="R", help="value of white, for ONNX files of others: 1 or 255"
    )
    made.add_debug()
    return made


def main(argv: Sequence[str]) -> None:
    """Enlarge as ``argv`` says and print what was done.

    Raises:
        SRQError: for wrong options, and at the end if an image failed.
    """
    args = parser().parse_args(argv)

    from srq_nni.speedup import upscale

    todo = upscale.plan(args.input, args.output, suffix=args.format, skip_existing=args.skip_existing)
    network = upscale.SRNetwork(
        args.model,
        engine=args.engine,
        threads=args.threads,
        value_range=args.value_range,
        float_precision=args.float_precision,
    )
    for path in todo.skipped:
        sys.stderr.write(f"srq: skipped '{path}'\n")
    with _Progress(todo) as progress:
        try:
            outcome = upscale.run(
                network,
                todo.jobs,
                tile=args.tile,
                overlap=args.overlap,
                max_pixels=upscale.MAX_PIXELS if args.max_pixels is None else args.max_pixels,
                on_window=progress.windows,
                on_image=progress.image,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(RESUME) from None
    seconds = sum(done.seconds for done in outcome.done)
    count = f"{len(outcome.done)} image{'' if len(outcome.done) == 1 else 's'}"
    if outcome.done or not outcome.failed:
        sys.stdout.write(f"{count} x{network.scale} with {network.engine} in {seconds:.1f} s\n")
    outcome.raise_if_failed()


class _Progress:
    """A bar of images and one of the windows of an image, on a terminal only, and a line for each image."""

    def __init__(self, todo: Plan) -> None:
        from srq_nni.progress import Reported

        self.images, self.windows = Reported("Images", "image"), Reported("Windows", "window")
        self.done, self.total = 0, len(todo.jobs)
        if self.total > 1:
            self.images(0, self.total)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.windows.close()
        self.images.close()

    def image(self, result: Done | tuple[Job, str]) -> None:
        from tqdm import tqdm

        self.done += 1
        self.images(self.done, self.total)
        if isinstance(result, tuple):
            if self.total > 1:  # a single one is the error that the command ends with
                tqdm.write(f"srq: {result[1]}", file=sys.stderr)
            return
        (height, width), (tall, wide) = result.input_size, result.output_size
        tqdm.write(f"{result.job.target}: {width}x{height} -> {wide}x{tall}, {result.seconds:.1f} s", file=sys.stdout)
