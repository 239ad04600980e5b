"""The benchmark of INT8 speed runs on small networks, and its page says what may be read from it."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    speed = importlib.import_module("speed")
    small = {"EDSR": {"num_feat": 8, "num_block": 1}, "RDN": {"num_feat": 8, "num_block": 2, "num_layer": 2}}
    cases = {
        name: replace(case, network={**case.network, **small[case.network["type"]]})
        for name, case in speed.CASES.items()
        if name in ("x4 body and tail", "x2 deploy", "rdn")
    }
    monkeypatch.setattr(speed, "CASES", cases)
    monkeypatch.setattr("sys.argv", ["speed.py", "--out", str(tmp_path / "speed.md"), "--size", "16", "--rounds", "1"])
    speed.main()
    page = (tmp_path / "speed.md").read_text()
    assert capsys.readouterr().out.strip() == page.strip()
    ratios = [line.split(" | ") for line in page.splitlines() if line.startswith("| EDSR")]
    assert [(row[1], row[2], row[3], row[6]) for row in ratios] == [
        ("openvino", "int8 + bfloat16", "float32", "8"),
        ("openvino", "int8 + bfloat16", "bfloat16", "1.6"),
        ("openvino", "int8 + bfloat16-tail", "float32", "8"),
        ("openvino", "int8 + bfloat16-tail", "bfloat16", "1.6"),
        ("onnxruntime", "int8 + float32", "float32", "2"),
    ]
    assert all(float(row[4]) > 0 and float(row[5]) > 0 for row in ratios)
    assert all(float(row[8].removesuffix(" |")) > 40 for row in ratios)
    assert "RDN x2 (16 blocks of 8), 8-bit body, 8x8 pixels, 1 thread(s), medians of 1 in turns" in page
    machine = speed.measure.__globals__["benchmark"].__globals__["this_machine"]()
    assert ("not AMX**: the ratios to reach are defined for AMX and were not" in page) == (
        machine.instruction_set != "amx_int8"
    )
