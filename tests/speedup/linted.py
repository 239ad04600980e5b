"""What the tests of the linter share: files, and what the engines really run of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from srq_nni.speedup import ModelSpeedupONNXRuntime, ModelSpeedupOpenVINO
from tests.speedup.handmade import CHANNELS

ENGINES: dict[str, Any] = {"openvino": ModelSpeedupOpenVINO, "onnxruntime": ModelSpeedupONNXRuntime}
INT8: dict[str, Any] = {}
UINT8 = {"dtype": np.uint8}
UINT8_ONLY = "onnxruntime takes such codes as uint8 only"


def saved(model: Any, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def ran_in_integers(engine: str, path: Path) -> int:
    pytest.importorskip(engine)
    speedup = ENGINES[engine](path, (1, CHANNELS, 16, 16), threads=1)
    speedup.compress()
    speedup.inference(torch.rand(1, CHANNELS, 16, 16) - 0.5)
    return speedup.precision_report().integer_convolutions
