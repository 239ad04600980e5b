"""Protocol P: train all cells of the accuracy table, as many at a time as there are cores, and write the table.

    python benchmarks/accuracy/run.py --data ../shared/data --jobs 2

The queue is in contenders.py. Each run is cut off and resumed at will: it saves itself every 200 iterations into
accuracy_runs/ and a finished cell becomes a row of benchmarks/results/accuracy.csv. ``--only`` chooses cells by
a pattern over their names, ``--list`` shows what there is and what is done. tables.py makes Markdown and plots.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from cells import Cell  # noqa: E402
from contenders import queue  # noqa: E402
from results import CSV, Row, add_row, read_rows  # noqa: E402


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Hold a cell's folder, so that no other process trains it; False if another one does."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def run_cell(cell: Cell, data: Path, work: Path, table: Path) -> Row | None:
    """Train and measure one cell and add its row; None if it is done already or another process has it."""
    from measuring import finish

    folder = work / cell.name
    with claimed(folder) as mine:
        if not mine or cell.name in read_rows(table):
            return None
        row = finish(cell, data, folder)
        add_row(table, row)
        return row


def work_off(cells: Sequence[Cell], jobs: int, arguments: Sequence[str]) -> int:
    """Run each cell in a process of its own, ``jobs`` at a time, one thread each; return the number of failures."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    waiting, running, failed = list(cells), list[tuple[Cell, subprocess.Popen[bytes]]](), 0
    while waiting or running:
        while waiting and len(running) < jobs:
            cell = waiting.pop(0)
            command = [sys.executable, str(HERE / "run.py"), "--cell", cell.name, *arguments]
            running.append((cell, subprocess.Popen(command, env=environment)))
        time.sleep(1)
        for cell, process in list(running):
            if process.poll() is not None:
                running.remove((cell, process))
                failed += process.returncode != 0
                if process.returncode:
                    print(f"{cell.name}: ended with status {process.returncode}", file=sys.stderr, flush=True)
    return failed


def select(pattern: str | None) -> list[Cell]:
    """Return the cells whose names match; exit if there are none."""
    try:
        cells = [cell for cell in queue() if pattern is None or re.search(pattern, cell.name)]
    except re.error as error:
        raise SystemExit(f"--only: {pattern!r} is not a pattern ({error}); mend it") from None
    if not cells:
        raise SystemExit(f"--only: {pattern!r} matches no cell; --list shows all names")
    return cells


def described_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that knows where data, checkpoints and table lie."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared/data", help="folder shared/data")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "accuracy_runs", help="checkpoints (ignored by git)")
    parser.add_argument("--table", type=Path, default=CSV, help="CSV with a row for each finished cell")
    return parser


def check_data(parser: argparse.ArgumentParser, data: Path) -> None:
    """Exit with a sentence if there is no such folder."""
    if not data.is_dir():
        parser.error(f"--data: '{data}' is no folder; give the one that holds benchmark/, train/, val/ and weights/")


def main(argv: Sequence[str] | None = None) -> int:
    parser = described_parser(__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, one thread each")
    parser.add_argument("--only", metavar="PATTERN", help="cells whose names contain this regular expression")
    parser.add_argument("--cell", metavar="NAME", help="run this cell alone, in this process")
    parser.add_argument("--list", action="store_true", help="show the queue and what is done")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f"--jobs: {args.jobs} is not allowed; give at least 1")
    if args.list:
        done = read_rows(args.table)
        for cell in select(args.only):
            print(f"{'done' if cell.name in done else '    '} {cell.name}")
        return 0
    check_data(parser, args.data)
    if args.cell is None:
        done = read_rows(args.table)
        cells = [cell for cell in select(args.only) if cell.name not in done]
        paths = {"--data": args.data, "--work": args.work, "--table": args.table}
        return int(work_off(cells, args.jobs, [str(word) for pair in paths.items() for word in pair]) > 0)
    torch.set_num_threads(1)
    named = {cell.name: cell for cell in queue()}
    if args.cell not in named:
        parser.error(f"--cell: '{args.cell}' is not in the queue; --list shows all names")
    row = run_cell(named[args.cell], args.data, args.work, args.table)
    print(
        f"{args.cell}: " + ("done before, or taken by another process" if row is None else row.sentence()), flush=True
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
