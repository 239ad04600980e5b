"""Writing the ONNX file of a network for one engine, with a report of what runs in integers and why not."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from srq_nni.atomic import atomic_file, file_to_write
from srq_nni.progress import layers_run
from srq_nni.speedup import markers
from srq_nni.speedup.byte_products import inexact_without_vnni
from srq_nni.speedup.certificate import Certificate, CertificateRow, certify
from srq_nni.speedup.engine_rules import get_rules
from srq_nni.speedup.graph import build_graph, float_graph
from srq_nni.speedup.image_metadata import write_metadata
from srq_nni.speedup.lint import Verdict, lint_graph
from srq_nni.speedup.pixel_shuffle import reorder_pixel_shuffles
from srq_nni.speedup.table import text_table


@dataclass(frozen=True)
class LayerReport:
    """What an engine does with one quantized convolution.

    Attributes:
        name: module path.
        activation_bits, weight_bits: widths asked for, None where the tensor stays in floating point.
        runs_in_integers: what the rules of the engine promise; ``precision_report()`` of a speedup counts what ran.
        reason: why it does not, empty otherwise.
        note: what to know about it although it does, see ``lint.Verdict``; empty mostly.
    """

    name: str
    activation_bits: int | None
    weight_bits: int | None
    runs_in_integers: bool
    reason: str
    note: str = ""


@dataclass(frozen=True)
class ExportReport:
    """What ``export_onnx`` wrote; ``str()`` is a table.

    Attributes:
        path: the file.
        engine: the engine it is for.
        file_bytes: its size.
        layers: one entry per quantized convolution, in the order of ``certificate.rows``.
        certificate: exactness of their sums, and coverage.
        inexact_without_vnni: layers whose products older x86 CPUs round or saturate, see ``byte_products``.
    """

    path: Path
    engine: str
    file_bytes: int
    layers: tuple[LayerReport, ...]
    certificate: Certificate
    inexact_without_vnni: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [
            (
                layer.name,
                "float" if layer.activation_bits is None else str(layer.activation_bits),
                "float" if layer.weight_bits is None else str(layer.weight_bits),
                row.largest_sum,
                row.float32,
                "int8" if layer.runs_in_integers else "float32",
                layer.reason or layer.note,
            )
            for layer, row in zip(self.layers, self.certificate.rows, strict=True)
        ]
        head = ("layer", "activation", "weight", "largest sum", "in float32", "runs in", "because")
        integer = sum(layer.runs_in_integers for layer in self.layers)
        rules = get_rules(self.engine)
        lossy = rules.without_vnni.format(count=len(self.inexact_without_vnni)) if self.inexact_without_vnni else ""
        exact = "exact" if self.certificate.exact_in_int32 else "NOT EXACT"
        return (
            f"{self.path} for {self.engine}, {self.file_bytes / 1e6:.2f} MB\n"
            f"{text_table(head, rows)}\n"
            f"{integer} of {len(rows)} quantized convolutions in integers, accumulators {exact} in int32; "
            f"coverage {self.certificate.coverage:.1%}" + "".join(f"\n{note}" for note in (rules.note, lossy) if note)
        )


def export_onnx(
    model: nn.Module | str | os.PathLike[str],
    path: str | os.PathLike[str],
    engine: str = "openvino",
    *,
    metadata: Mapping[str, str] | None = None,
    integer_bias: bool | None = None,
    input_size: tuple[int, int] = (64, 64),
    sample: torch.Tensor | None = None,
) -> ExportReport:
    """Write ``model`` as an ONNX file with integer weights and explicit Q/DQ pairs for ``engine``.

    The file takes float32 images (N, C, H, W) in the range the network was trained on, any N, H and W. It appears
    whole or not at all: on error an existing file stays as it was.

    Args:
        model: quantized network, or the path of a checkpoint.
        path: file to write, ``*.onnx``; its folder must exist.
        engine: ``openvino``, ``onnxruntime`` or ``tensorrt``. A file for one engine is a valid ONNX file for all, but
            others may run it in floating point.
        metadata: entries for the file's ``metadata_props``, such as ``{"wiring": "paper"}``; ``{"value_range": "255"}``
            for a network whose images are not in [0, 1], see ``image_metadata``.
        integer_bias: biases as int32 on the grid of the accumulator; None does as the engine wants it (ONNX Runtime:
            yes); see ``integers``.
        input_size: (height, width) at which coverage is counted.
        sample: input to trace with, where zeros of 32 x 32 pixels do not suit the network.

    Raises:
        ExportError: for an unknown engine, a missing ``onnx`` package, or a network that cannot be written as integers;
            the message names the layer.
        WriteError: if ``path`` is a folder, in no folder, the checkpoint itself or no ``*.onnx``, or the disk
            refuses it.
    """
    rules = get_rules(engine)
    sources = () if isinstance(model, nn.Module) else (model,)
    target = file_to_write(path, *sources, ending=".onnx")
    network, entries = _network(model)
    entries.update(metadata or {})
    channels = None if sample is None else sample.shape[1]
    with layers_run(network, 3, f"Exporting for {rules.name}"):  # to read integers, to trace, and to count
        proto, integers = build_graph(network, rules, metadata=entries, integer_bias=integer_bias, sample=sample)
        certificate = certify(network, input_size, channels=channels, integers=integers)
    content = proto.SerializeToString()
    write_atomically(target, content)
    verdicts = lint_graph(proto, rules)
    layers = tuple(_layer_report(row, verdicts) for row in certificate.rows)
    return ExportReport(target, engine, len(content), layers, certificate, inexact_without_vnni(proto, rules))


def export_float_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    sample: torch.Tensor | None = None,
) -> Path:
    """Write ``model`` as a plain float32 ONNX file, the baseline of every comparison; returns the path.

    Quantizers in ``model`` are left out. Input, output, metadata and errors as for ``export_onnx``.
    """
    target = file_to_write(path, ending=".onnx")
    network = copy.deepcopy(model).float().cpu().eval()
    markers.remove(network)
    proto = float_graph(network, sample)
    reorder_pixel_shuffles(proto)
    write_metadata(proto, metadata or {})
    write_atomically(target, proto.SerializeToString())
    return target


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that readers see the old file or the whole new one.

    Raises:
        WriteError: if the file cannot be written; an existing file stays as it was.
    """
    with atomic_file(path) as file:
        file.write(content)


def _network(model: nn.Module | str | os.PathLike[str]) -> tuple[nn.Module, dict[str, str]]:
    """Return the network and, where it knows, its type and the wiring it was built with."""
    from srq_nni import checkpoint

    network = model if isinstance(model, nn.Module) else checkpoint.load(model)
    base, quantization = checkpoint.blocks_of(network) or ({}, {})
    found = {"network": base.get("type"), "wiring": quantization.get("wiring")}
    return network, {key: str(value) for key, value in found.items() if value}


def _layer_report(row: CertificateRow, verdicts: tuple[Verdict, ...]) -> LayerReport:
    found = [verdict for verdict in verdicts if verdict.layer == row.name]
    reason = next((verdict.reason for verdict in found if verdict.reason), "")
    if row.weight_bits is None:
        reason = "its weight is not quantized"
    note = "" if reason else next((verdict.note for verdict in found if verdict.note), "")
    return LayerReport(row.name, row.activation_bits, row.weight_bits, not reason, reason, note)
