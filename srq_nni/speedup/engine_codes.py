"""What an engine chose: the codes of every quantizer in a run of a file, read from the engine itself.

A copy of the file has them as further outputs. With these an engine may fuse less and decide a tie otherwise than
without, which its image shows; then each quantizer is read from a copy that shows it alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from srq_nni.speedup.engine import EngineSpeedup
from srq_nni.speedup.engines import engine_of
from srq_nni.speedup.lazy import import_or_explain
from srq_nni.speedup.onnx_graph import OnnxGraph
from srq_nni.speedup.pixel_shuffle import in_original_order, reordered_for


@dataclass(frozen=True)
class Chosen:
    """What the engine chose in one run of a quantizer: codes as integers in float32, and the grid if it has a gate."""

    codes: torch.Tensor
    grid: tuple[torch.Tensor, ...] | None


@dataclass(frozen=True)
class _Probe:
    """What a file computes in one run of a quantizer.

    Attributes:
        name: of the quantizer.
        zero_point: of its stored codes.
        block: see ``pixel_shuffle.reordered_for``.
        tensors: names and ONNX types: the codes; with a gate also step, smallest and largest code of each image.
    """

    name: str
    zero_point: int
    block: int
    tensors: dict[str, int]

    def chosen(self, shown: Sequence[np.ndarray]) -> Chosen:
        """Return what these values of the tensors say."""
        codes, *grid = shown
        codes = in_original_order(codes.astype(np.float32) - self.zero_point, self.block)
        return Chosen(torch.from_numpy(codes), tuple(map(torch.from_numpy, grid)) or None)


def read_codes(
    path: Path,
    engine: str,
    batches: Sequence[torch.Tensor],
    images: Sequence[np.ndarray],
    *,
    threads: int | None = None,
) -> list[dict[str, list[Chosen]]]:
    """Return for each batch what the engine chose: for each quantizer by name, its runs in order.

    Args:
        path: of a file that ``export_onnx`` wrote.
        engine: its name.
        batches: (N, C, H, W), float.
        images: what the engine makes of them with the file as it is.
        threads: of the engine.
    """
    proto = import_or_explain("onnx", "onnx").load(path)
    probes = _probes(proto)
    shape: Any = tuple(batches[0].shape)
    together = _showing(proto, probes, engine, shape, threads)
    shown = [_run(together, probes, batch) for batch in batches]
    codes = [chosen for _, chosen in shown]
    otherwise = [place for place, (image, _) in enumerate(shown) if not np.array_equal(image, images[place])]
    for number, probe in enumerate(probes if otherwise else ()):
        alone = _showing(proto, [probe], engine, shape, threads)
        for place in otherwise:
            (codes[place][number],) = _run(alone, [probe], batches[place])[1]
    return [_by_name(probes, chosen) for chosen in codes]


def _run(engine: EngineSpeedup, probes: Sequence[_Probe], batch: torch.Tensor) -> tuple[np.ndarray, list[Chosen]]:
    """Return the image that an engine makes, and what it shows of each quantizer."""
    image, *values = engine.outputs(batch)
    rest = iter(values)
    return image, [probe.chosen([next(rest) for _ in probe.tensors]) for probe in probes]


def _by_name(probes: Sequence[_Probe], codes: Sequence[Chosen]) -> dict[str, list[Chosen]]:
    found: dict[str, list[Chosen]] = {}
    for probe, chosen in zip(probes, codes, strict=True):
        found.setdefault(probe.name, []).append(chosen)
    return found


def _probes(proto: Any) -> list[_Probe]:
    """Return the activation quantizers of a file in the order of its nodes."""
    graph = OnnxGraph(proto.graph)
    nodes = {node.name: node for node in graph.nodes}
    types = {constant.name: constant.data_type for constant in proto.graph.initializer}
    floats = import_or_explain("onnx", "onnx").TensorProto.FLOAT
    probes = []
    for node in graph.nodes:
        if node.op_type == "DequantizeLinear" and node.name.endswith("_dq") and node.input[0] not in types:
            prefix, zero_point = node.name.removesuffix("_dq"), graph.constant(node.input[2])
            assert zero_point is not None
            tensors = {node.input[0]: types[node.input[2]]}
        elif node.name.endswith("_codes") and f"{node.name.removesuffix('_codes')}_dq" not in nodes:  # of a gate
            prefix, zero_point = node.name.removesuffix("_codes"), np.array(0)
            tensors = {node.output[0]: floats}
        else:
            continue
        if f"{prefix}_above" in nodes:
            sources = (f"{prefix}_div", f"{prefix}_above", f"{prefix}_codes")
            tensors.update((nodes[source].input[1], floats) for source in sources)
        block = reordered_for(graph, node.output[0])
        probes.append(_Probe(prefix.partition("@")[0], int(zero_point), block, tensors))
    return probes


def _showing(
    proto: Any, probes: Sequence[_Probe], engine: str, shape: tuple[int, int, int, int], threads: int | None
) -> EngineSpeedup:
    """Return the engine of a copy that has the tensors of these quantizers as further outputs."""
    onnx = import_or_explain("onnx", "onnx")
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for probe in probes:
        for tensor, kind in probe.tensors.items():
            copy.graph.output.append(onnx.helper.make_tensor_value_info(tensor, kind, None))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "showing.onnx"
        path.write_bytes(copy.SerializeToString())
        return engine_of(engine, path, shape, threads=threads)
