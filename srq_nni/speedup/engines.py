"""The engines by name, and which of them can run here."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from srq_nni.errors import ExportError
from srq_nni.speedup.engine import EngineSpeedup
from srq_nni.speedup.engine_rules import ENGINES, get_rules

CLASSES = {
    "openvino": "ModelSpeedupOpenVINO",
    "onnxruntime": "ModelSpeedupONNXRuntime",
    "tensorrt": "ModelSpeedupTensorRT",
}


def speedup_class(engine: str) -> type[EngineSpeedup]:
    """Return the class that builds and runs models with ``engine``; the engine need not be installed.

    Raises:
        ExportError: for an unknown name, with the nearest right one.
    """
    name = CLASSES[get_rules(engine).name]
    found: type[EngineSpeedup] = getattr(importlib.import_module("srq_nni.speedup"), name)
    return found


def engine_of(
    engine: str, path: Path, shape: tuple[int, int, int, int], *, threads: int | None = None, **options: Any
) -> EngineSpeedup:
    """Return ``engine`` built from an ONNX file.

    Args:
        engine: its name.
        path: of the file.
        shape: (N, C, H, W) of the largest input; only TensorRT keeps to it.
        threads: of the engine; TensorRT has none to choose.
        options: of its class.

    Raises:
        ExportError: if it is not installed, has not the hardware it needs, or refuses the file.
    """
    speedup = speedup_class(engine)
    if engine == "tensorrt":
        built = speedup(path, shape, **options)
        built.compress()
        return built
    built = speedup(path, shape, threads=threads, **options)
    built.load_quantized_model(path)
    return built


def runs_here(engine: str) -> bool:
    """Whether ``engine`` is installed and has the hardware it needs."""
    try:
        speedup_class(engine)("model.onnx", (1, 3, 8, 8)).check_installed()
    except ExportError:
        return False
    return True


def engines_here() -> tuple[str, ...]:
    """Return the names of the engines that run here."""
    return tuple(engine for engine in ENGINES if runs_here(engine))
