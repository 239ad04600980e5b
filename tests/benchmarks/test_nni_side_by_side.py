"""The comparison with NNI's quantizers runs, and a contender that fails is a row with its reason."""

from __future__ import annotations

import csv
import importlib
import math
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_contender_has_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = importlib.import_module("nni_side_by_side")
    nni_photos = importlib.import_module("nni_photos")
    monkeypatch.setattr(nni_photos, "TILES_A_PHOTO", 1)
    monkeypatch.setattr(nni_photos, "BATCH", 1)
    qat = benchmark.contender("QAT", 4, 10)

    def failing(name: str, bits: int, steps: int) -> object:
        return (lambda *_: 1 / 0) if name == "LSQ" else qat if name == "QAT" else contender(name, bits, steps)

    contender = benchmark.contender
    monkeypatch.setattr(benchmark, "contender", failing)
    benchmark.main(["--steps", "10", "--bits", "4", "--out", str(tmp_path / "out")])
    with (tmp_path / "out.csv").open() as file:
        rows = {row["quantizer"]: row for row in csv.DictReader(file)}
    assert tuple(rows) == benchmark.NAMES
    assert rows["LSQ"]["note"] == "ZeroDivisionError: division by zero" and math.isnan(float(rows["LSQ"]["psnr"]))
    for name in ("float", "QAT", "PAMS", "DDTB"):
        assert rows[name]["note"] == "" and 25 < float(rows[name]["psnr"]) < 40
        assert float(rows[name]["ratio"]) > 0.3
    assert float(rows["PAMS"]["scale_gradient"]) > 0 == float(rows["QAT"]["scale_gradient"])
    assert rows["DDTB"]["quantizer"] in (tmp_path / "out.md").read_text()
