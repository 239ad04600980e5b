"""A summary as text, at most 100 columns wide, and as data for programs."""

from __future__ import annotations

import dataclasses
import string
import textwrap
from collections.abc import Iterator
from typing import Any

from srq_nni.speedup.table import text_table
from srq_nni.summary.grouping import Group, grouped
from srq_nni.summary.rows import Convolution, EngineVerdict, Summary, TrainingTime

TITLES = {"openvino": "OpenVINO", "onnxruntime": "ONNX RT", "tensorrt": "TensorRT"}
FORMAT_VERSION = 1
WIDTH, INDENT = 100, 12


def render(summary: Summary, *, every_row: bool = False) -> str:
    """Return ``summary`` as text: the table of its convolutions, why some run in floating point, and the totals.

    Args:
        summary: what to show.
        every_row: one line a convolution, and none for several that are alike.
    """
    groups = [Group(row.name, row.source, (row,)) for row in summary.rows] if every_row else grouped(summary.rows)
    engines = list(summary.rows[0].engines) if summary.rows else []
    letters: dict[str, str] = {}
    head = ("convolution", "n", "bits", "input from", "gate", "MACs", *(TITLES.get(name, name) for name in engines))
    table = [_line(group, summary.macs, letters) for group in groups]
    reasons = [_wrapped(f"{letter}  {reason}", 3) for reason, letter in letters.items()]
    totals = [(name.ljust(INDENT - 2), text) for name, text in _totals(summary)]
    lines = [_wrapped(f"{name}  {text}", INDENT) for name, text in totals]
    notes = [_wrapped(note, len("note: ")) for note in summary.notes]
    return "\n".join([_title(summary), "", text_table(head, table), *reasons, "", *lines, *notes])


def as_data(summary: Summary) -> dict[str, Any]:
    """Return ``summary`` as dicts, lists and numbers: every row, and the totals that are derived from them."""
    totals = ("macs", "coverage", "weight_coverage", "bops", "float_bops", "quantized_parameters", "size", "ratio")
    data = {"format": FORMAT_VERSION, **dataclasses.asdict(summary)}
    data["totals"] = {name: getattr(summary, name) for name in (*totals, "file_bytes", "float_bytes")}
    for row, own in zip(data["rows"], summary.rows, strict=True):
        row["bops"] = own.bops
        for engine, verdict in own.engines.items():
            row["engines"][engine]["runs_in_integers"] = verdict.runs_in_integers
    if summary.training is not None:
        data["training"]["seconds"] = summary.training.seconds
    return data


def duration(seconds: float) -> str:
    """Return a time in the two units that matter: ``3 d 4 h``, ``2 h 10 min``, ``5 min``, ``40 s``.

    >>> duration(7800)
    '2 h 10 min'
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = round(minutes / 60)
    return f"{minutes // 60} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def _wrapped(line: str, indent: int) -> str:
    return textwrap.fill(line, WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def _title(summary: Summary) -> str:
    wiring = {"": "", "config_list": ", config_list"}.get(summary.wiring, f", wiring {summary.wiring}")
    method = summary.method.replace(",", " and ").upper() or "float"
    subject = "" if summary.subject == summary.network else f"{summary.subject}: "
    return f"{subject}{summary.network} x{summary.scale}, {method}{wiring}"


def _line(group: Group, macs: int, letters: dict[str, str]) -> tuple[str, ...]:
    first = group.rows[0]
    share = sum(row.macs for row in group.rows) / macs if macs else 0.0
    cells = [_cell(verdict, letters) for verdict in first.engines.values()]
    return (
        group.name,
        str(len(group.rows)),
        _bits(first),
        group.source or "-",
        first.gate or "-",
        f"{share:.1%}",
        *cells,
    )


def _bits(row: Convolution) -> str:
    if row.weight_bits is None and row.activation_bits is None:
        return "float"
    return f"W{row.weight_bits or 32}A{row.activation_bits or 32}"


def _cell(verdict: EngineVerdict, letters: dict[str, str]) -> str:
    plain = _kind(verdict.reason, letters)
    if not verdict.depends_on_gate:
        return plain
    assert verdict.reason_if_gated is not None
    return f"{plain}*{_kind(verdict.reason_if_gated, letters).removeprefix('float')}"


def _kind(reason: str, letters: dict[str, str]) -> str:
    if not reason:
        return "int8"
    return f"float {letters.setdefault(reason, _letter(len(letters)))}"


def _letter(index: int) -> str:
    alphabet = string.ascii_lowercase
    return alphabet[index] if index < len(alphabet) else _letter(index // len(alphabet) - 1) + alphabet[index % 26]


def _totals(summary: Summary) -> Iterator[tuple[str, str]]:
    quantized = summary.quantized
    widest = f", {summary.weight_coverage:.1%} a quantized weight"
    yield (
        "coverage",
        f"{summary.coverage:.1%} of the MACs have two quantized operands"
        + (widest if summary.weight_coverage != summary.coverage else ""),
    )
    if quantized:
        within = f"{summary.quantized_parameters:,} of them in {len(quantized)} quantized convolutions"
        yield "parameters", f"{summary.parameters:,}, {within}; {summary.bounds} bounds besides"
        sizes = (
            f"{summary.file_bytes / 1e6:.2f} MB with weights at these bits, {summary.float_bytes / 1e6:.2f} MB float"
        )
        yield "file size", sizes
        numbers = f"{summary.size / 1e6:.3f} M of {summary.parameters / 1e6:.3f} M 32-bit numbers"
        yield "published", f"{numbers} (biases at these bits, too): ratio {summary.ratio:.2f}"
    else:
        yield "parameters", f"{summary.parameters:,}"
        yield "file size", f"{summary.float_bytes / 1e6:.2f} MB float"
    yield "MACs", f"{summary.macs / 1e9:.1f} G for an output of 1280x720"
    reduced = f", {summary.float_bops / 1e12:.1f} T float" if quantized else ""
    yield "BOPs", f"{summary.bops / 1e12:.1f} T" + reduced
    yield from _gates(summary)
    if summary.training is not None:
        yield "training", _training(summary.training)


def _gates(summary: Summary) -> Iterator[tuple[str, str]]:
    if summary.gate_candidates:
        yield "gates", f"{summary.gates} of {summary.gate_candidates}, chosen while training"
    elif summary.gates:
        yield "gates", f"{summary.gates}, with {summary.gate_parameters:,} parameters"
    if any(verdict.depends_on_gate for row in summary.rows for verdict in row.engines.values()):
        yield "*", "without a gate; with one it changes sides"


def _training(time: TrainingTime) -> str:
    counted = [phase for phase in time.phases if phase.iterations]
    steps = ", ".join(f"{phase.name} {phase.iterations:,} x {phase.seconds:.2g} s" for phase in counted)
    scaled = "" if time.measured == time.batch else f", scaled from {time.measured} of {time.batch} images"
    return f"about {duration(time.seconds)} on {time.device} ({steps}{scaled}), without validation and loading"
