"""What finished runs scored: read from the logs of ``srq test``, kept in a CSV of one row a run."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from commands import Run, iterations
from published import SETS

from srq_nni.atomic import atomic_file
from srq_nni.errors import DataError, listing

CSV = Path(__file__).resolve().parents[1] / "results" / "full_recipe.csv"
HEADER = ("run", "tested", "set", "psnr", "ssim")
NUMBER = r"(-?(?:\d+\.\d+|nan|inf))"  # the SSIM of noise may be below 0
VALIDATION = re.compile(rf"^(\S+) .*: Validation (\S+)\n\t # psnr: {NUMBER}.*\n\t # ssim: {NUMBER}", re.MULTILINE)


@dataclass(frozen=True)
class Measured:
    """What ``srq test`` said of one run.

    Attributes:
        tested: date, ISO 8601.
        scores: set -> (Y-PSNR in dB, SSIM).
    """

    tested: str
    scores: Mapping[str, tuple[float, float]]


def read_log(log: Path, run: Run, iteration: int) -> Measured:
    """Return what a log of ``srq test`` says of a run's checkpoint of one iteration.

    Raises:
        DataError: if the log is of another checkpoint or other bits, or lacks a set.
    """
    text = log.read_text(encoding="utf-8", errors="replace")
    again = f"repeat srq test ({run.name})"
    if not re.search(rf"pretrain_network_g: \S*{re.escape(run.model(iteration))}$", text, re.MULTILINE):
        raise DataError(f"'{log}' is not of {run.model(iteration)}, the published length; {again}")
    if not re.search(rf"^\s*bits: {run.setting.bits}$", text, re.MULTILINE):
        raise DataError(f"'{log}' is not of {run.setting.bits} bits; {again}")
    found = {name: (date, (float(psnr), float(ssim))) for date, name, psnr, ssim in VALIDATION.findall(text)}
    missing = [name for name in SETS if name not in found]
    if missing:
        raise DataError(f"'{log}' has no PSNR and SSIM of {listing(missing)}; {again}")
    return Measured(found[SETS[0]][0], {name: found[name][1] for name in SETS})


def newest_log(folder: Path, run: Run) -> Path | None:
    """Return the newest log of ``srq test`` of a run below the folder that holds ``results/``, if there is one."""
    logs = (folder / "results" / run.name).glob(f"test_{run.name}_*.log")
    return max(logs, key=lambda log: log.stat().st_mtime, default=None)


def collect(folder: Path, runs: Iterable[Run]) -> dict[str, Measured]:
    """Return name -> scores of each run that ``srq test`` has measured in ``folder``.

    Raises:
        DataError: if there is none, or a log does not say what it must.
    """
    logs = [(run, log) for run in runs if (log := newest_log(folder, run))]
    if not logs:
        raise DataError(
            f"'{folder}' holds no results/full_.../test_*.log of these runs; give the folder in which srq test ran"
        )
    return {run.name: read_log(log, run, iterations()) for run, log in logs}


def read_scores(path: Path = CSV) -> dict[str, Measured]:
    """Return name -> scores of the finished runs; none if there is no file."""
    if not path.exists():
        return {}
    found: dict[str, Measured] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            own = found.setdefault(line["run"], Measured(line["tested"], {}))
            found[line["run"]] = Measured(
                own.tested, {**own.scores, line["set"]: (float(line["psnr"]), float(line["ssim"]))}
            )
    return found


def add_scores(new: Mapping[str, Measured], path: Path = CSV) -> dict[str, Measured]:
    """Add scores to the CSV, or replace those of the same runs; return all of them.

    Raises:
        WriteError: if the disk refuses it; the old file stays.
    """
    merged = {**read_scores(path), **new}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for name, measured in sorted(merged.items()):
        writer.writerows((name, measured.tested, place, *pair) for place, pair in measured.scores.items())
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())
    return merged
