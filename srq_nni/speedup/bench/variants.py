"""One network on every engine in every precision: what is compared in a benchmark."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from srq_nni.progress import track
from srq_nni.quantization.layers import quantized_convolutions
from srq_nni.speedup.bench.floats import has_quantizers, without_quantizers
from srq_nni.speedup.engine import EngineSpeedup
from srq_nni.speedup.engines import engine_of
from srq_nni.speedup.export import export_float_onnx, export_onnx, write_atomically
from srq_nni.speedup.image_metadata import image_channels, read_metadata, value_range_of
from srq_nni.speedup.lazy import import_or_explain
from srq_nni.speedup.onnx_file import is_onnx, read_onnx
from srq_nni.speedup.openvino import BFLOAT16, FLOAT32, FLOAT_PRECISIONS
from srq_nni.speedup.simulator import integer_simulator

INT8, INT8_BFLOAT16, INT8_BFLOAT16_TAIL = (f"int8 + {floats}" for floats in FLOAT_PRECISIONS)
NO_BFLOAT16 = {
    "onnxruntime": "onnxruntime has no bfloat16 convolution for this processor",
    "tensorrt": "srq-nni builds no bfloat16 engine with TensorRT",
}
ORDER = (FLOAT32, BFLOAT16, INT8, INT8_BFLOAT16, INT8_BFLOAT16_TAIL)


@dataclass(frozen=True)
class Variant:
    """One way to run the network.

    Attributes:
        engine: that runs it.
        precision: one of ``ORDER``: of what is quantized, and of the rest in the words of ``ModelSpeedupOpenVINO``.
        speedup: the built engine; None if it has no such precision.
        file_bytes: size of the ONNX file.
        reference: name of the simulator of what it computes, if it is an integer variant; see ``Subject``.
        missing: why there is no engine.
    """

    engine: str
    precision: str
    speedup: EngineSpeedup | None
    file_bytes: int
    reference: nn.Module | None = None
    missing: str = ""


@dataclass(frozen=True)
class Subject:
    """The network of a benchmark.

    Attributes:
        name: of its file or class.
        channels: of its images.
        value_range: value of white.
        variants: grouped by engine, in the order of ``ORDER``.
    """

    name: str
    channels: int
    value_range: float
    variants: tuple[Variant, ...]


def subject_of(
    model: nn.Module | str | os.PathLike[str],
    folder: Path,
    *,
    engines: Sequence[str],
    size: tuple[int, int],
    threads: int | None,
    name: str | None = None,
) -> Subject:
    """Build every variant of ``model``.

    Args:
        model: network with or without quantizers, checkpoint, or ONNX file.
        folder: where the files are written.
        engines: by name.
        size: (height, width) of the images that will run.
        threads: of the engines.
        name: in place of the file's.

    Raises:
        ExportError, CheckpointError: if the model cannot be read, takes no images of this size, or cannot be written
            for an engine.
    """
    if not isinstance(model, nn.Module) and is_onnx(model):
        return _from_file(Path(model), folder, engines, size, threads, name)
    network = model
    if not isinstance(network, nn.Module):
        from srq_nni import checkpoint

        network = checkpoint.load(network)
    onnx = import_or_explain("onnx", "onnx")
    plain = export_float_onnx(network, folder / "float.onnx")
    title = name or (type(network).__name__ if isinstance(model, nn.Module) else Path(model).name)
    channels = image_channels(onnx.load_model_from_string(read_onnx(plain)), title, size)
    shape = (1, channels, *size)
    quantized = any(quantized_convolutions(network))
    variants: list[Variant] = []
    for engine in track(engines, "Building engines", "engine"):
        integer, simulator = None, None
        if quantized:
            integer = folder / f"{engine}.onnx"
            export_onnx(network, integer, engine)
            simulator = integer_simulator(network, engine=engine)
        variants += _of_engine(engine, plain, integer, simulator, shape, threads)
    return Subject(title, channels, 1.0, tuple(variants))


def _from_file(
    path: Path, folder: Path, engines: Sequence[str], size: tuple[int, int], threads: int | None, name: str | None
) -> Subject:
    onnx = import_or_explain("onnx", "onnx")
    content = read_onnx(path)
    proto = onnx.load_model_from_string(content)
    channels, entries = image_channels(proto, path, size), read_metadata(proto)
    plain, integer = path, None
    if has_quantizers(proto):
        integer, plain = path, folder / "float.onnx"
        write_atomically(plain, without_quantizers(proto).SerializeToString())
    variants: list[Variant] = []
    for engine in track(engines, "Building engines", "engine"):
        own = integer if entries.get("engine", engine) == engine else None
        variants += _of_engine(engine, plain, own, None, (1, channels, *size), threads)
    return Subject(name or path.name, channels, value_range_of(entries) or 1.0, tuple(variants))


def _of_engine(
    engine: str,
    plain: Path,
    integer: Path | None,
    simulator: nn.Module | None,
    shape: tuple[int, int, int, int],
    threads: int | None,
) -> list[Variant]:
    """Return the variants of one engine: float files first, then the integer file."""
    found = []
    for precision in ORDER:
        path = integer if precision.startswith("int8") else plain
        if path is None:
            continue
        reference = simulator if path is integer else None
        floats = precision.removeprefix("int8 + ")
        if floats != FLOAT32 and engine != "openvino":
            if precision == BFLOAT16:
                found.append(Variant(engine, precision, None, path.stat().st_size, None, NO_BFLOAT16[engine]))
            continue
        options = {"float_precision": floats} if engine == "openvino" else {}
        speedup = engine_of(engine, path, shape, threads=threads, **options)
        found.append(Variant(engine, precision, speedup, path.stat().st_size, reference))
    return found
