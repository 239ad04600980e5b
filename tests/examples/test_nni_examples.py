"""The examples for NNI run, and print numbers that were measured."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    nni_photos = importlib.import_module("nni_photos")
    monkeypatch.setattr(nni_photos, "TILES_A_PHOTO", 1)
    monkeypatch.setattr(nni_photos, "BATCH", 2)
    return importlib.import_module


def test_edsr(example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = example("nni_edsr").main(["--steps", "6"])
    assert result["layers"] == 10
    assert result["rebuilt"] == result["trained"], "the calibration_config is the whole quantizer"
    assert 25 < result["trained"] < result["float"]
    assert (tmp_path / "edsr_int4.onnx").stat().st_size < 400_000
    assert "10 of 10 quantized convolutions in integers" in capsys.readouterr().out


def test_own_network(example: Any) -> None:
    result = example("nni_own_network").main(["--steps", "20"])
    assert result["bits"] == {
        "body.0 _input_0": 4,
        "body.0 weight": 4,
        "body.2 _input_0": 4,
        "body.2 weight": 4,
        "skip _input_1": 8,
        "tail.0 _input_0": 8,
        "tail.0 weight": 8,
    }
    assert result["trained"] > result["float"] - 3


def test_mixed_bits(example: Any) -> None:
    result = example("nni_mixed_bits").main(["--steps", "12"])
    assert [bits for _, bits in result["layers"].values()] == [8, 8, 6, 6, 4, 4, 3, 3, 3, 3]
    assert [method for method, _ in result["layers"].values()] == ["pams"] * 6 + ["ddtb"] * 4
    assert 25 < result["trained"] < result["float"]


def test_prune_quantize_distill(example: Any) -> None:
    result = example("nni_prune_quantize_distill").main(["--steps", "10"])
    before, after = result["parameters"]
    features, blocks, kernel = 32, 5, 9
    dropped = features // 4
    assert before - after == blocks * dropped * (2 * features * kernel + 1)
    assert result["pruned"] < result["trained"] < result["float"]
