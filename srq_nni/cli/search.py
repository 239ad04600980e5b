"""``srq search``: bits for a budget, as a config_list to edit and an option file that trains with it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from srq_nni.atomic import file_to_write
from srq_nni.cli.parser import Parser
from srq_nni.errors import OptionError


def main(argv: Sequence[str]) -> None:
    """Search as ``argv`` says, print the losses and the choice, and write the files."""
    args = _parser().parse_args(argv)

    from srq_nni.models.options import read_options
    from srq_nni.search import Budget, search_bits
    from srq_nni.search.budget import Kind
    from srq_nni.search.nni_experiment import measure_with_nni, read_service
    from srq_nni.search.setup import Problem, problem_from
    from srq_nni.search.write import FILES, refuse_edited, table, write_result

    given: dict[Kind, float | None] = {"loss": args.max_loss, "size": args.max_size, "bops": args.max_bops}
    limits = {kind: limit for kind, limit in given.items() if limit is not None}
    if len(limits) != 1:
        raise OptionError("srq search wants one limit; give --max-loss dB, --max-size MB or --max-bops T")
    if args.saving and "loss" not in limits:
        raise OptionError("--saving has no meaning beside a limit of cost; leave it out, or give --max-loss")
    if args.nni_listen_anyway and not args.nni:
        raise OptionError("--nni-listen-anyway has no meaning without --nni; leave it out")
    kind, limit = next(iter(limits.items()))
    budget = Budget(kind, limit, args.saving or "bops")
    service = read_service(args.nni, listen_anyway=args.nni_listen_anyway) if args.nni else None
    opt = read_options(args.opt, args.force_yml)
    folder = Path(args.output or f"search/{opt.get('name', 'search')}")
    problem = problem_from(
        opt,
        widths=args.bits,
        phase=args.images,
        count=args.count,
        size=args.size,
        cache=folder / "measurements.json",
    )
    _make(folder)
    for name in FILES:
        file_to_write(folder / name, args.opt)
    refuse_edited(folder)
    if problem.images.warning:
        sys.stderr.write(f"srq: warning: {problem.images.warning}\n")
    spread = None
    if service is not None:
        spec = {"opt": str(Path(args.opt).resolve()), "overrides": args.force_yml, "widths": args.bits}
        spec |= {"phase": args.images, "count": args.count, "size": args.size, "folder": str(Path.cwd())}

        def spread(problem: Problem) -> None:
            done, wanted = measure_with_nni(problem, spec, folder, service)
            if done < wanted:
                sys.stderr.write(
                    f"srq: warning: NNI measured {done} of {wanted} convolutions; the others follow here\n"
                )

    try:
        result = search_bits(problem, budget, spread=spread)
    except KeyboardInterrupt:
        measured = folder / "measurements.json"
        raise KeyboardInterrupt(f"stopped; the same command goes on from {measured}") from None
    command = shlex.join(["srq", "search", *argv])
    paths = write_result(result, folder, Path(args.opt).read_text(encoding="utf-8"), opt, command)
    sys.stdout.write(f"{table(result)}\n\nwrote {', '.join(map(str, paths))}\ntrain: srq train -opt {paths[1]}\n")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"-o: the folder '{folder}' cannot be made: {error.strerror}; give another one") from None


def _parser() -> Parser:
    parser = Parser(
        "search", "Choose the bits of each convolution within one limit, from what it loses on a few images."
    )
    parser.add_argument("-opt", required=True, metavar="FILE.yml", help="option file with a quantization block")
    parser.add_argument("--force_yml", nargs="+", default=[], metavar="KEY:KEY=VALUE", help="change option values")
    parser.add_argument("--max-loss", type=float, metavar="DB", help="PSNR on Y below the float network, in dB")
    parser.add_argument("--max-size", type=float, metavar="MB", help="size of the parameters, in 10^6 bytes")
    parser.add_argument("--max-bops", type=float, metavar="T", help="BOPs for an output of 1280x720, in 10^12")
    parser.add_argument("--saving", choices=["bops", "size"], help="with --max-loss: what to make small (bops)")
    parser.add_argument(
        "--bits", type=int, nargs="+", default=[8, 6, 4, 3, 2], metavar="N", help="widths to choose from"
    )
    parser.add_argument("--images", default="train", metavar="PHASE", help="dataset to measure on (train)")
    parser.add_argument("--count", type=int, default=8, metavar="N", help="number of images (8)")
    parser.add_argument("--size", type=int, default=64, metavar="N", help="side of their middle part, LR pixels (64)")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="folder to write (search/NAME)")
    parser.add_argument("--nni", metavar="local|SERVICE.yml", help="measure as an NNI experiment on a training service")
    parser.add_argument("--nni-listen-anyway", action="store_true", help="let NNI's portal listen on every interface")
    parser.add_debug()
    return parser
