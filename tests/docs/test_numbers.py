"""Numbers in README and docs stand in the results that a committed script wrote."""

from __future__ import annotations

import re
import sys
from statistics import fmean

import pytest

from tests.sr_data import REPOSITORY

sys.path[:0] = [str(REPOSITORY / "benchmarks" / "accuracy"), str(REPOSITORY / "benchmarks")]

import results  # noqa: E402
import tables  # noqa: E402

README = (REPOSITORY / "README.md").read_text()
MEASURED = re.split(r"\n(?=### )", README[README.index("\n## What was measured") : README.index("\n## What differs")])
NUMBER = re.compile(r"\d+\.\d+(?:e[+-]\d+)?")
LOST = re.compile(r"(\d\d\.\d{3}) / \d\d\.\d{3}(?: \([\d. to]+\))?(?:, \w[^|]*)?(?:, | \| )(-?\d\.\d{3})(?= |,)")
PAIR = re.compile(r"(\d\d\.\d{3})\s/\s(\d\d\.\d{3})")
ON_SET5 = re.compile(r"\b(3\d\.\d{3}) dB")


def measured() -> list[tuple[str, float, float]]:
    """Return network, Set5 and Set14 in dB of each row of the accuracy benchmark, and of the means over seeds."""
    groups: dict[tuple[object, ...], list[results.Row]] = {}
    for row in results.read_rows(results.CSV).values():
        kind = (row.network, row.method, row.wiring, row.recipe, row.bits, row.iterations)
        groups.setdefault(kind, []).append(row)
        groups[row.cell,] = [row]
    return [
        (rows[0].network, fmean(row.set5_psnr for row in rows), fmean(row.set14_psnr for row in rows))
        for rows in groups.values()
    ]


def scores() -> set[tuple[str, str]]:
    """Return Set5 and Set14 of ``measured`` as they are written."""
    return {(f"{set5:.3f}", f"{set14:.3f}") for _, set5, set14 in measured()}


def test_pairs_of_set5_and_set14_are_rows_of_the_table() -> None:
    pairs = PAIR.findall((REPOSITORY / "docs" / "accuracy.md").read_text())
    assert len(pairs) > 60
    assert set(pairs) <= scores()


def test_losses_in_tables_are_those_to_the_float_network() -> None:
    floats = {row.network: row.set5_psnr for row in results.read_rows(results.CSV).values() if row.method == "float"}
    losses = {(f"{set5:.3f}", f"{floats[network] - set5:.3f}") for network, set5, _ in measured()}
    lines = (REPOSITORY / "docs" / "accuracy.md").read_text().splitlines()
    found = [pair for line in lines if line.startswith("|") for pair in LOST.findall(line)]
    assert len(found) > 30
    assert set(found) <= losses


def test_scores_in_the_readme_are_rows_of_the_table() -> None:
    (section,) = (part for part in MEASURED if part.startswith("### Accuracy at low bits"))
    found = ON_SET5.findall(section)
    assert len(found) > 10
    assert set(found) <= {set5 for set5, _ in scores()}


def test_the_page_of_the_accuracy_benchmark_is_that_of_its_rows() -> None:
    rows = list(results.read_rows(results.CSV).values())
    assert results.CSV.with_suffix(".md").read_text() == tables.document(rows)


@pytest.mark.parametrize("section", MEASURED[1:], ids=lambda text: text.splitlines()[0].removeprefix("### "))
def test_tables_of_the_readme_repeat_the_results_they_link(section: str) -> None:
    files = re.findall(r"\]\(([^)#]+\.md)\)", section)
    assert files, "a table links the page with its results"
    known = [float(number) for file in files for number in NUMBER.findall((REPOSITORY / file).read_text())]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert lines
    for line in lines:
        for number in NUMBER.findall(line):
            assert any(_rounds_to(value, number) for value in known), f"{number} of '{line}' is not in {files}"


def _rounds_to(value: float, written: str) -> bool:
    mantissa, _, exponent = written.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(value - float(written)) <= 0.5001 * unit
