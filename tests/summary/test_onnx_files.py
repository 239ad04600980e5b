"""What a summary says of ONNX files that other tools wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from srq_nni.errors import ExportError
from srq_nni.summary import Summary, summarize_onnx

onnx = pytest.importorskip("onnx")

from tests.speedup.handmade import block  # noqa: E402


def summary_of(model: Any, folder: Path) -> Summary:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return summarize_onnx(path)


@pytest.mark.parametrize("name", ["", "conv"])
def test_nodes_without_names_of_their_own_get_their_own_verdicts(name: str, tmp_path: Path) -> None:
    uint8: dict[str, Any] = {"dtype": np.uint8}
    model = block(activation=uint8, output=uint8, last="float")
    for node in model.graph.node:
        node.name = name
    first, last = summary_of(model, tmp_path).rows
    assert [verdict.reason for verdict in first.engines.values()] == [
        "",
        "",
        "its input is uint8, and tensorrt takes int8",
    ]
    assert [verdict.runs_in_integers for verdict in last.engines.values()] == [False] * 3


def test_a_float_network_without_names_runs_nothing_in_integers(tmp_path: Path) -> None:
    model = block()
    for node in model.graph.node:
        node.name = ""
    for row in summary_of(model, tmp_path).rows:
        assert {verdict.reason for verdict in row.engines.values()} == {"its input is not quantized"}


@pytest.mark.parametrize("kind", ["QLinearConv", "ConvInteger"])
def test_integer_operators_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    model = block()
    model.graph.node[-1].op_type = kind
    with pytest.raises(ExportError) as error:
        summary_of(model, tmp_path)
    assert str(error.value) == (
        f"'{tmp_path}/model.onnx': it has convolutions as {kind}, whose bits srq summary does not read; give the file "
        "with QuantizeLinear / DequantizeLinear pairs that it was made from, or use lint_onnx"
    )
