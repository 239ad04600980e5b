"""srq_nni: PAMS and DDTB, quantizers for super-resolution, for NNI and BasicSR, exported as integers.

Importing the package fills BasicSR's registries. Names that need NNI or an engine are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from srq_nni import compat

compat.prepare()

from srq_nni import archs, functional, losses, models  # noqa: E402
from srq_nni.checkpoint import load  # noqa: E402

__version__ = "0.1.0"

_LAZY = {
    "DDTBQuantizer": "srq_nni.compression.quantizers",
    "LoopEvaluator": "srq_nni.compression.evaluator",
    "PAMSQuantizer": "srq_nni.compression.quantizers",
    "SKTDistiller": "srq_nni.compression.distiller",
    "config_list": "srq_nni.compression.config",
    "convert": "srq_nni.conversion",
    "convert_back": "srq_nni.conversion",
    "equalize": "srq_nni.equalization",
    "export_onnx": "srq_nni.speedup",
    "pack": "srq_nni.packed",
    "quantized_network": "srq_nni.compression.calibration_config",
    "skt_config_list": "srq_nni.compression.distiller",
    "integer_simulator": "srq_nni.speedup",
    "ModelSpeedupONNXRuntime": "srq_nni.speedup",
    "ModelSpeedupOpenVINO": "srq_nni.speedup",
    "ModelSpeedupTensorRT": "srq_nni.speedup",
}

__all__ = ["archs", "functional", "load", "losses", "models", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'srq_nni' has no attribute {name!r}")
