"""The recorded cases of the released code, and how a test claims them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from srq_nni.quantization.calibration import IntensityRecorder

TESTS = Path(__file__).resolve().parents[1]
CASES: dict[str, dict[str, Any]] = {
    case["id"]: case for case in json.loads((TESTS / "data" / "methods.json").read_text())["cases"]
}
Check = Callable[[dict[str, Any], dict[str, Any], float], None]


class Checks(dict[str, Check]):
    """Case id -> check, called with (inputs, expected, tolerance)."""

    def claims(self, *ids: str) -> Callable[[Check], Check]:
        """Register a check for these cases; no case may be claimed twice."""

        def register(check: Check) -> Check:
            for case_id in ids:
                assert case_id not in self, f"{case_id} is claimed twice"
                self[case_id] = check
            return check

        return register


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    actual, expected = (torch.as_tensor(value, dtype=torch.float64) for value in (actual, expected))
    assert actual.shape == expected.shape
    worst = ((actual - expected).abs() / (1 + expected.abs())).max().item()
    assert worst <= tolerance, f"off by {worst:.3g}, allowed is {tolerance:.3g}"


def recorded_intensity(largest: Sequence[float], smallest: Sequence[float]) -> float:
    """Return what a recorder says of the extremes of some batches."""
    recorder = IntensityRecorder()
    for low, high in zip(smallest, largest, strict=True):
        recorder.update(torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64))
    return recorder.intensity


def calibrating(quantizer: Any) -> Any:
    quantizer.train().set_mode("calibrate")
    return quantizer
