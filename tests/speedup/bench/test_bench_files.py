"""A benchmark's JSON file is read back as what was written, and anything else is refused."""

from __future__ import annotations

import json
import math

import pytest

from srq_nni.errors import DataError
from srq_nni.speedup.bench import BenchReport, Difference, Row
from srq_nni.speedup.machine import Machine

MACHINE = Machine("2026-11-25", "abc1234", "A processor", "avx2", False, 2, 0.5, {"openvino": "1.0"})
TIMES = {"wall": 0.2, "cpu": 0.3, "fastest_cpu": 0.25, "walls": (0.2,), "cpus": (0.3,), "convolutions": 4}
EXACT = Difference(math.inf, 0.0, 0.0)
ROWS = (
    Row("openvino", "float32", 1000, **TIMES),
    Row("openvino", "bfloat16", 1000, notes=("no bfloat16 here",)),
    Row("openvino", "int8 + float32", 500, **TIMES, integer_convolutions=2, kernels={"gemm": 4}, difference=EXACT),
)
REPORT = BenchReport("net.pth", (24, 40), 1, 1, MACHINE, ROWS)


def test_round_trip() -> None:
    assert BenchReport.from_json(REPORT.as_json()) == REPORT
    assert str(BenchReport.from_json(REPORT.as_json())) == str(REPORT)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "rows": [{}]}', "nonsense"])
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"^this is no result of a benchmark \(.*\); give a file of srq bench --json$"):
        BenchReport.from_json(text)


def test_a_newer_format_is_refused() -> None:
    newer = json.dumps(json.loads(REPORT.as_json()) | {"format": 2})
    with pytest.raises(DataError, match=r"^the benchmark has format 2 and this version reads 1; update srq-nni$"):
        BenchReport.from_json(newer)
