"""The engines by name, and which of them can run here."""

from __future__ import annotations

import importlib

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
