"""Rows of the accuracy benchmark, and the page and the plot that are made of them."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.sr_data import REPOSITORY

sys.path[:0] = [str(REPOSITORY / "benchmarks" / "accuracy"), str(REPOSITORY / "benchmarks")]

import cells  # noqa: E402
import contenders  # noqa: E402
import results  # noqa: E402
import tables  # noqa: E402


def row(**changes: Any) -> results.Row:
    kinds = {"int": 1, "float": 1.5, "str": "x"}
    values = {field.name: kinds[str(field.type)] for field in dataclasses.fields(results.Row)}
    return results.Row(**{**values, **changes})


def test_rows_survive_and_replace_their_like(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    assert results.read_rows(path) == {}
    results.add_row(path, row(cell="a"), row(cell="b"))
    results.add_row(path, row(cell="a", bits=4, size=float("nan")))
    rows = results.read_rows(path)
    assert list(rows) == ["a", "b"] and rows["a"].bits == 4 and np.isnan(rows["a"].size)


@pytest.mark.parametrize(
    ("network", "text"),
    [
        ("EDSR-64x8", ""),
        ("RDN-10x3", ", 500 iterations of 4 patches"),
        ("SRResNet-64x8", ", 600 iterations of 4 patches, crop 4"),
        ("SRResNet-64x8-whole", ", crop 4"),
    ],
)
def test_the_page_says_what_departs_from_the_protocol(network: str, text: str) -> None:
    assert tables.budget(cells.NETWORKS[network]) == text


def test_iterations_that_equalize_belong_to_the_budget() -> None:
    recipe = "recommended, distilled, equalized, lr 1e-4"
    whole, short, untrained = (
        row(network="EDSR-32x5", recipe=name, iterations=iterations)
        for name, iterations in ((recipe, 2850), (recipe, 450), ("least error, equalized", 0))
    )

    assert [tables.spent(one) for one in (whole, short, untrained)] == [3000, 600, 0]
    assert [tables.is_whole(one) for one in (whole, short, untrained)] == [True, False, True]


def test_the_page_says_what_a_recipe_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = {"network": "EDSR-32x5", "seed": 1, "iterations": 3000, "minutes": 17.0}
    rows = [row(cell="f", method="float", bits=32, wiring="", recipe="", set5_psnr=37.38, **base)]
    for recipe, wiring, psnr in (("official", "official", 36.38), ("recommended", "paper", 36.98)):
        cell = cells.Cell("ddtb", 4, wiring, recipe)
        rows.append(row(cell=cell.name, method="ddtb", bits=4, wiring=wiring, recipe=recipe, set5_psnr=psnr, **base))
    table = tmp_path / "accuracy.csv"
    results.add_row(tmp_path / "other.csv", *rows)
    assert tables.main(["--table", str(table), "--merge", str(tmp_path / "other.csv")]) == 0
    page = table.with_suffix(".md").read_text()
    assert page == capsys.readouterr().out.removesuffix("\n")
    assert "official loses 1.000 dB on Set5, recommended 0.400, 40% of it; published on EDSR-baseline x2: 0.3." in page
    assert f"Not run yet: {len(contenders.queue()) - 2} of {len(contenders.queue())} cells." in page
    assert table.with_suffix(".png").stat().st_size > 5000
    assert "One change at a time" not in page


@pytest.mark.parametrize(("left", "end"), [(8, ""), (9, ", ..")])
def test_the_page_names_eight_cells_that_have_not_run(left: int, end: str) -> None:
    names = [cell.name for cell in contenders.queue()]
    page = tables.document([row(cell=name, network="EDSR-32x5", bits=4) for name in names[left:]])
    assert page.endswith(f"most telling first: {', '.join(f'`{name}`' for name in names[:8])}{end}\n")


def test_runs_of_other_lengths_have_a_section_of_their_own() -> None:
    base = {"network": "EDSR-32x5", "method": "ddtb", "bits": 2, "wiring": "paper", "seed": 1}
    rows = [
        row(cell=recipe, recipe=recipe, iterations=length, val_psnr=psnr, set5_psnr=36.0, **base)
        for recipe, length, psnr in (
            ("recommended", 3000, 34.0),
            ("recommended", 600, 33.5),
            ("recommended, lr 1e-3", 600, 33.625),
            ("recommended, without gates", 600, 33.25),
            ("recommended, without SKT", 500, 33.0),
        )
    ]
    page = tables.document(rows)
    assert "## One change at a time, in runs of other lengths" in page
    order = [
        page.index(line)
        for line in (
            "| EDSR-32x5, DDTB, 2 bits, 600 iterations | wiring |",
            "| recommended, lr 1e-3 | paper | 33.625 | +0.125 | 36.000 |",
            "| recommended | paper | 33.500 |  | 36.000 |",
            "| recommended, without gates | paper | 33.250 | -0.250 | 36.000 |",
            "| EDSR-32x5, DDTB, 2 bits, 500 iterations | wiring |",
            "| recommended, without SKT | paper | 33.000 |  | 36.000 |",
        )
    ]
    assert order == sorted(order)
    assert page.count("| ddtb |") == 1, "the table of whole runs has the whole run alone"


def test_several_seeds_have_their_mean_and_range() -> None:
    base = {"network": "EDSR-32x5", "method": "ddtb", "bits": 2, "wiring": "paper", "iterations": 3000}
    rows = [
        row(cell=f"{recipe}{seed}", recipe=recipe, seed=seed, set5_psnr=psnr, set14_psnr=32.0, val_psnr=34.0, **base)
        for recipe, seed, psnr in (("official", 1, 34.0), ("recommended", 2, 36.5), ("recommended", 1, 36.25))
    ]
    page = tables.document(rows)
    assert "| recommended | 2 | 1, 2 | 36.375 (36.250 to 36.500) | 32.000 (32.000 to 32.000) |" in page
    assert page.count("| EDSR-32x5 | ddtb |") == 1, "one seed has no spread"
    assert "## Several seeds" not in tables.document(rows[:2])
