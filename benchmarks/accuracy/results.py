"""The table of finished cells: one CSV row each, added atomically."""

from __future__ import annotations

import csv
import fcntl
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from srq_nni.atomic import atomic_file

CSV = Path(__file__).resolve().parents[1] / "results" / "accuracy.csv"


@dataclass(frozen=True)
class Row:
    """One finished cell; an empty number means "not for this contender".

    Attributes:
        cell: name of the cell.
        set5_psnr, set14_psnr, set5_ssim, set14_ssim: on Y, with a border of the network's scale left out.
        val_psnr: the same on shared/data/val, the only set on which anything may be chosen.
        coverage, size, body_kb, bops: see ``measure.Cost``.
        minutes: CPU time of the training.
        commit, date, machine: where the row comes from.
    """

    cell: str
    network: str
    method: str
    wiring: str
    recipe: str
    bits: int
    seed: int
    iterations: int
    set5_psnr: float
    set5_ssim: float
    set14_psnr: float
    set14_ssim: float
    val_psnr: float
    coverage: float
    size: float
    body_kb: float
    bops: float
    minutes: float
    commit: str
    date: str
    machine: str

    def sentence(self) -> str:
        """Return the result for a log."""
        return f"Set5 {self.set5_psnr:.3f} dB, Set14 {self.set14_psnr:.3f} dB, val {self.val_psnr:.3f} dB"


_TYPES = {"int": int, "float": float, "str": str}


def read_rows(path: Path) -> dict[str, Row]:
    """Return the rows of a table by the name of their cell; none if there is no file."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = [
            Row(**{field.name: _TYPES[str(field.type)](line[field.name]) for field in fields(Row)})
            for line in csv.DictReader(file)
        ]
    return {row.cell: row for row in rows}


def add_row(path: Path, *rows: Row) -> None:
    """Add rows to a table, or replace those of the same cells; no other process can lose or tear one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        merged = {**read_rows(path), **{row.cell: row for row in rows}}
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(_rounded(row) for row in merged.values())
        with atomic_file(path) as file:
            file.write(text.getvalue().encode())


def _rounded(row: Row) -> dict[str, object]:
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in asdict(row).items()}
