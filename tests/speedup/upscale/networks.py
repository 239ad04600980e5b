"""ONNX files of networks whose results are known in closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from srq_nni.speedup import export_float_onnx


def nearest(path: Path, scale: int = 2, channels: int = 3, value_range: float = 1) -> Path:
    """Write a network that repeats every pixel ``scale`` x ``scale`` times, without any rounding."""
    pytest.importorskip("onnx")
    conv = nn.Conv2d(channels, channels * scale**2, 1, bias=False)
    weight = torch.eye(channels).repeat_interleave(scale**2, 0)
    conv.weight.data.copy_(weight[..., None, None])
    network = nn.Sequential(conv, nn.PixelShuffle(scale))
    return export_float_onnx(network, path, metadata={"value_range": f"{value_range:g}"})


def repeated(pixels: np.ndarray, scale: int = 2) -> np.ndarray:
    """Return what that network makes of (H, W, ...)."""
    return pixels.repeat(scale, 0).repeat(scale, 1)
