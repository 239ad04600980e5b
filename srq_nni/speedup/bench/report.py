"""What a benchmark found, as a table and as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from srq_nni.errors import DataError
from srq_nni.speedup.machine import Machine
from srq_nni.speedup.table import text_table

FORMAT = 1
TIMES = ("ms", "CPU ms", "speed", "by CPU", "over bf16")
HEAD = ("engine", "precision", *TIMES, "int8", "MB", "PSNR", "largest", "changed")


@dataclass(frozen=True)
class Difference:
    """An integer engine against the integer simulator.

    Attributes:
        psnr: in dB, before rounding to 8 bits; infinite for equal images.
        largest: difference in grey levels, before rounding.
        changed: share of the values that differ after rounding to 8 bits, from 0 to 1.
    """

    psnr: float
    largest: float
    changed: float


@dataclass(frozen=True)
class Row:
    """One engine in one precision; without times if it does not exist.

    Attributes:
        engine, precision: as in ``Variant``.
        file_bytes: size of the ONNX file.
        notes: what a reader would not expect.
        wall, cpu: median seconds of a call.
        fastest_cpu: least CPU seconds of a call, which other programs disturb least.
        walls, cpus: all of them, in order.
        convolutions, integer_convolutions: that ran, and how many of them multiplied integers.
        kernels: how often each ran.
        difference: from the simulator; None for floats, and where there is no simulator.
    """

    engine: str
    precision: str
    file_bytes: int
    notes: tuple[str, ...] = ()
    wall: float | None = None
    cpu: float | None = None
    fastest_cpu: float | None = None
    walls: tuple[float, ...] = ()
    cpus: tuple[float, ...] = ()
    convolutions: int = 0
    integer_convolutions: int = 0
    kernels: dict[str, int] = field(default_factory=dict)
    difference: Difference | None = None


@dataclass(frozen=True)
class BenchReport:
    """A benchmark; ``str()`` is a table.

    Attributes:
        model: name of the network.
        size: (height, width) of the image.
        threads: of the engines; None was their choice.
        repeats: calls that were counted of each row.
        machine: where it ran.
        rows: grouped by engine.
    """

    model: str
    size: tuple[int, int]
    threads: int | None
    repeats: int
    machine: Machine
    rows: tuple[Row, ...]

    def row(self, engine: str, precision: str) -> Row | None:
        """Return the row of ``engine`` and ``precision``, if there is one."""
        return next((row for row in self.rows if (row.engine, row.precision) == (engine, precision)), None)

    def speed(self, row: Row, engine: str, precision: str) -> float | None:
        """Return how many times ``row`` is as fast as another row, by median wall time."""
        base = self.row(engine, precision)
        return None if base is None or base.wall is None or row.wall is None else base.wall / row.wall

    def cpu_speed(self, row: Row, engine: str, precision: str) -> float | None:
        """Return the same by least CPU time, which other programs on the machine disturb less."""
        base = self.row(engine, precision)
        if base is None or base.fastest_cpu is None or row.fastest_cpu is None:
            return None
        return base.fastest_cpu / row.fastest_cpu

    def as_json(self) -> str:
        """Return everything as JSON; an infinite PSNR is null, with a largest difference of 0."""
        content: dict[str, Any] = {"format": FORMAT, **asdict(self)}
        for row in content["rows"]:
            if row["difference"] and math.isinf(row["difference"]["psnr"]):
                row["difference"]["psnr"] = None
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> BenchReport:
        """Read what ``as_json`` wrote.

        Raises:
            DataError: if it is something else, or was written by a newer version.
        """
        try:
            content = json.loads(text)
            version = content.pop("format")
            rows = tuple(_row_from(row) for row in content.pop("rows"))
            size, machine = tuple(content.pop("size")), Machine(**content.pop("machine"))
            report = cls(**content, size=size, machine=machine, rows=rows)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"this is no result of a benchmark ({error}); give a file of srq bench --json") from None
        if version > FORMAT:
            raise DataError(f"the benchmark has format {version} and this version reads {FORMAT}; update srq-nni")
        return report

    def table(self) -> tuple[list[tuple[str, ...]], dict[str, str]]:
        """Return the lines below ``HEAD``, and ``{note: mark}`` of the marks in them."""
        notes: dict[str, str] = {}
        return [self._line(row, notes) for row in self.rows], notes

    def __str__(self) -> str:
        lines, notes = self.table()
        threads = "threads of their choice" if self.threads is None else f"{self.threads} thread(s)"
        head = (
            f"{self.model}, {self.size[1]}x{self.size[0]} pixels, {threads}, medians of {self.repeats} in turns\n"
            f"{self.machine}"
        )
        legend = (
            "speed: float32 of the same engine = 1, by median wall time and by least CPU time; int8: convolutions that "
            "ran in integers; PSNR (dB), largest difference (grey levels, before rounding) and share of changed 8-bit "
            "values: against the integer simulator"
        )
        return "\n".join([head, text_table(HEAD, lines), legend, *(f"{mark} {text}" for text, mark in notes.items())])

    def _line(self, row: Row, notes: dict[str, str]) -> tuple[str, ...]:
        marks = "".join(notes.setdefault(text, f"[{len(notes) + 1}]") for text in row.notes)
        precision = f"{row.precision} {marks}" if marks else row.precision
        size = f"{row.file_bytes / 1e6:.2f}"
        if row.wall is None or row.cpu is None:
            return (row.engine, precision, *("-",) * (len(TIMES) + 1), size, "-", "-", "-")
        found = row.difference
        return (
            row.engine,
            precision,
            f"{row.wall * 1e3:.1f}",
            f"{row.cpu * 1e3:.1f}",
            _ratio(self.speed(row, row.engine, "float32")),
            _ratio(self.cpu_speed(row, row.engine, "float32")),
            _ratio(self.speed(row, row.engine, "bfloat16")),
            f"{row.integer_convolutions} of {row.convolutions}",
            size,
            "-" if found is None else "equal" if math.isinf(found.psnr) else f"{found.psnr:.1f}",
            "-" if found is None else f"{found.largest:.2g}",
            "-" if found is None else f"{found.changed:.2%}",
        )


def _row_from(content: dict[str, Any]) -> Row:
    found = content.pop("difference")
    if found is not None:
        found = Difference(**{**found, "psnr": math.inf if found["psnr"] is None else found["psnr"]})
    lists = {key: tuple(content.pop(key)) for key in ("notes", "walls", "cpus")}
    return Row(**{**content, **lists, "difference": found})


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
