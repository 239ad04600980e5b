"""The summary of an ONNX file with explicit Q/DQ pairs, read from its graph; nothing of it runs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from srq_nni.errors import ExportError
from srq_nni.speedup.engine_rules import ENGINES
from srq_nni.speedup.lazy import import_or_explain
from srq_nni.speedup.lint import lint_graph
from srq_nni.speedup.onnx_file import read_onnx
from srq_nni.summary.network import macs_at_output
from srq_nni.summary.onnx_reader import GraphReader
from srq_nni.summary.rows import Convolution, EngineVerdict, Summary


def summarize_onnx(path: str | os.PathLike[str]) -> Summary:
    """Return the summary of an ONNX file; engines are judged by what the file holds, whichever it was written for.

    Bits come from the codes: those of a weight from its integers, those of an activation from its limits. Where codes
    alone leave a choice, the bits that files of ours name decide.

    Raises:
        ExportError: if the file is missing or broken, keeps tensors outside its folder, or holds no image network.
    """
    path = Path(path)
    proto = import_or_explain("onnx", "onnx").load_model_from_string(read_onnx(path))
    try:
        return _summary(path, proto, GraphReader(proto))
    except ExportError as error:
        raise ExportError(f"'{path}': {error}") from error.__cause__


def _summary(path: Path, proto: Any, graph: GraphReader) -> Summary:
    scale = graph.scale()
    rows = _rows(graph, proto, macs_at_output(graph.count_macs, scale))
    gates = graph.gate_constants()
    written = graph.metadata.get("engine")
    return Summary(
        path.name,
        "ONNX",
        graph.metadata.get("method", ""),
        graph.metadata.get("wiring", ""),
        scale,
        rows,
        sum(row.weights + row.biases for row in rows) + graph.other_parameters(),
        gate_parameters=sum(gates.values()),
        gates=sum(name.endswith(".reduce") for name in gates),
        notes=(f"note: the file was written for {written}" if written else "note: no file of srq-nni",),
    )


def _rows(graph: GraphReader, proto: Any, macs: dict[str, int]) -> tuple[Convolution, ...]:
    """Return one row a weight; a layer that runs twice adds its operations and is judged by its worst use."""
    verdicts = {engine: {v.output: v.reason for v in lint_graph(proto, rules)} for engine, rules in ENGINES.items()}
    rows: dict[str, Convolution] = {}
    for node in graph.layers:
        source, name = graph.source(node), graph.name(node)
        engines = {engine: EngineVerdict(found[node.output[0]]) for engine, found in verdicts.items()}
        before = rows.get(name)
        if before is not None:
            worst = {
                engine: before.engines[engine] if before.engines[engine].reason else engines[engine]
                for engine in engines
            }
            rows[name] = replace(before, macs=before.macs + macs[node.output[0]], engines=worst)
            continue
        rows[name] = Convolution(
            name,
            graph.weight_bits(node),
            None if source is None else graph.activation_bits(source),
            "" if source is None else graph.place(name, source),
            "gate" if source is not None and graph.is_gated(source) else "",
            graph.weight_count(node),
            graph.bias_count(node),
            macs[node.output[0]],
            engines,
        )
    return tuple(rows.values())
