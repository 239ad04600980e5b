"""The published settings of PAMS and DDTB at full length: commands, dry runs, a table of published and own scores.

    python benchmarks/full_recipe/recipe.py --gpus 4 --only DDTB_EDSR_x4    # what to type, with one GPU or several
    python benchmarks/full_recipe/recipe.py --dry-run data/photos           # each for an iteration a phase, on a CPU
    python benchmarks/full_recipe/recipe.py --collect .                     # scores of finished runs, into the table

The table stands in docs/published.md; ``--page`` writes it without looking for scores.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "accuracy")]

from commands import Run, arithmetic, runs  # noqa: E402
from page import PAGE, fill  # noqa: E402
from scores import CSV, add_scores, collect, read_scores  # noqa: E402

from srq_nni.atomic import atomic_file  # noqa: E402
from srq_nni.errors import OptionError, SRQError, WriteError  # noqa: E402


def show(chosen: Sequence[Run], gpus: int) -> None:
    """Print the commands as a shell script."""
    print(f"# {arithmetic()}")
    for run in chosen:
        print(f"\n# {run.setting}, recipe {run.recipe}")
        print(shlex.join(run.training(gpus)))
        print(shlex.join(run.testing()))


def dry(chosen: Sequence[Run], photos: Path, processes: int, output: Path | None) -> int:
    """Run each for some iterations, print how it ended and note it in a file at once; return how many failed."""
    import torch
    from dry_run import Outcome, dry_runs, report, widest_first

    torch.set_num_threads(1)
    if output is not None and not output.parent.is_dir():
        raise WriteError(f"--output: there is no folder '{output.parent}'; create it first")
    outcomes: list[Outcome] = []
    for outcome in dry_runs(widest_first(chosen), photos, processes):
        outcomes.append(outcome)
        print(f"{outcome.error or 'passed'}  {outcome.seconds:.0f} s  {outcome.run.name}", flush=True)
        if output is not None:
            with atomic_file(output) as file:
                file.write(report(outcomes, processes).encode())
    failed = sum(bool(outcome.error) for outcome in outcomes)
    print(f"{len(outcomes) - failed} of {len(outcomes)} passed")
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PATTERN", help="runs whose names contain this regular expression")
    parser.add_argument(
        "--gpus", type=int, default=1, metavar="N", help="how many train together, in a dry run as well"
    )
    does = parser.add_mutually_exclusive_group()
    does.add_argument("--dry-run", type=Path, metavar="DATA", help="folder of photos; run each for some iterations")
    does.add_argument("--collect", type=Path, metavar="FOLDER", help="where srq test ran: it holds results/")
    does.add_argument("--page", action="store_true", help="only write the table again")
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="with --dry-run: write how each ended, too")
    parser.add_argument("--table", type=Path, default=CSV, help="CSV with the scores of finished runs")
    parser.add_argument("--docs", type=Path, default=PAGE, help="page that holds the table")
    args = parser.parse_args(argv)
    try:
        chosen = runs(args.only)
        if args.output is not None and args.dry_run is None:
            raise OptionError("--output has no meaning without --dry-run; leave it out")
        if args.dry_run is not None:
            return int(dry(chosen, args.dry_run, args.gpus, args.output) > 0)
        if args.collect is not None:
            new = collect(args.collect, chosen)
            fill(args.docs, add_scores(new, args.table))
            print(f"{len(new)} runs, now in {args.table} and {args.docs}")
        elif args.page:
            fill(args.docs, read_scores(args.table))
        else:
            show(chosen, args.gpus)
    except SRQError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__" and main():
    sys.exit(1)
