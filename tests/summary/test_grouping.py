"""Rows that are alike are one line, and a line never names a row that it does not hold."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srq_nni.summary.grouping import grouped, ranges
from srq_nni.summary.rows import Convolution, EngineVerdict, Summary
from srq_nni.summary.table import duration, render


def row(name: str, bits: int | None = 4, source: str = "own", macs: int = 10, reason: str = "") -> Convolution:
    return Convolution(name, bits, bits, source, "", 9, 1, macs, {"openvino": EngineVerdict(reason)})


def names(rows: list[Convolution]) -> list[str]:
    return [group.name for group in grouped(rows)]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([3], "3"), ([0, 1], "{0,1}"), (range(16), "0..15"), ([0, 2, 5, 6, 7], "{0,2,5..7}"), ([1, 3], "{1,3}")],
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert ranges(list(numbers)) == text


def test_blocks_are_one_line_each_in_the_order_of_the_network() -> None:
    rows = [row("head", None)] + [row(f"body.{i}.conv{j}") for i in range(16) for j in (1, 2)] + [row("up.0", None)]
    assert names(rows) == ["head", "body.0..15.conv1", "body.0..15.conv2", "up.0"]


def test_one_block_with_other_bits_is_a_line_of_its_own() -> None:
    rows = [row(f"body.{i}.conv1", 2 if i == 3 else 4) for i in range(6)]
    assert names(rows) == ["body.{0..2,4,5}.conv1", "body.3.conv1"]


def test_two_numbers_make_a_grid_or_several_lines() -> None:
    grid = [row(f"b.{i}.c.{j}") for i, j in product(range(3), range(4))]
    assert names(grid) == ["b.0..2.c.0..3"]
    assert names(grid[:-1]) == ["b.0.c.0..3", "b.1.c.0..3", "b.2.c.0..2"]


def test_a_source_is_spelt_like_the_names() -> None:
    groups = grouped([row(f"body.{i}.conv1", source=f"body.{i}.input") for i in range(3)])
    assert [(group.name, group.source) for group in groups] == [("body.0..2.conv1", "body.0..2.input")]


def test_digits_inside_a_word_do_not_count() -> None:
    assert names([row("body.0.conv1"), row("body.0.conv2")]) == ["body.0.conv1", "body.0.conv2"]


@given(st.sets(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1))
def test_every_row_is_in_exactly_one_group_that_names_it(cells: set[tuple[int, int]]) -> None:
    rows = [row(f"b.{i}.c.{j}") for i, j in sorted(cells)]
    spelt = [name for group in grouped(rows) for name in _expanded(group.name)]
    assert sorted(spelt) == sorted(member.name for member in rows)


def _expanded(name: str) -> list[str]:
    first, second = name.removeprefix("b.").split(".c.")
    return [f"b.{i}.c.{j}" for i in _numbers(first) for j in _numbers(second)]


def _numbers(text: str) -> list[int]:
    found: list[int] = []
    for part in text.strip("{}").split(","):
        low, _, high = part.partition("..")
        found.extend(range(int(low), int(high or low) + 1))
    return found


def test_the_table_fits_100_columns_and_every_row_can_be_asked_for() -> None:
    rows = tuple(row(f"RDBs.{i}.convs.{j}.conv.0", reason="too wide" * i) for i in range(2) for j in range(8))
    summary = Summary("train.yml", "RDN", "pams", "paper", 2, rows, 1000)
    text = render(summary)
    assert text.startswith("train.yml: RDN x2, PAMS, wiring paper\n")
    assert max(map(len, text.splitlines())) <= 100 and "too wide" in text
    assert text.count("\nRDBs") == 2 and render(summary, every_row=True).count("\nRDBs") == 16
    assert "RDBs.1.convs.0..7.conv.0  8" in text and "float a" in text and "\na  too wide\n" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (7800, "2 h 10 min"), (86400 * 3 + 3600 * 4, "3 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
