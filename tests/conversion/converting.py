"""What the tests of conversion share: photographs in grey levels, files, and the comparison with a released network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import srq_nni
from srq_nni.archs.quantized_arch import build_float
from srq_nni.conversion import Conversion, convert
from tests.conversion.released import Released, State


def photograph() -> torch.Tensor:
    """Return a crop of a photograph, (1, 3, 20, 20), in grey levels."""
    from skimage import data

    image = np.ascontiguousarray(data.astronaut()[100:120, 200:220].transpose(2, 0, 1))
    return torch.from_numpy(image).float()[None]


def saved(network: Released, path: Path, *, wrapped: bool = True, prefix: str = "") -> Path:
    """Write the state dict as the released code does, beside what a training loop keeps, or flat."""
    state = {prefix + key: value for key, value in network.state.items()}
    torch.save({"epoch": 30, "state_dict": state, "optimizer": {"state": {}}} if wrapped else state, path)
    return path


def source_of(network: Released) -> str:
    """Return the project that such a network comes from."""
    return network.method or ("ddtb" if network.arch == "srresnet" else "edsr-pytorch")


def converted(network: Released, folder: Path, **options: Any) -> Conversion:
    """Save a released network, convert it, and return what was written to ``ours.pth``."""
    path = saved(network, folder / "official.pth.tar")
    if network.method is not None:
        options.setdefault("bits", network.bits)
    return convert(path, folder / "ours.pth", source_of(network), overwrite=True, **options)


def loaded(done: Conversion) -> nn.Module:
    """Return the network of a converted checkpoint, as its user gets it."""
    if done.quantization is not None:
        return srq_nni.load(done.path)
    model = build_float(done.network or {}).eval()
    model.load_state_dict(torch.load(done.path, weights_only=True)["params"])
    return model


def distance(model: nn.Module, network: Released, image: torch.Tensor, white: float = 255) -> float:
    """Return the largest difference of outputs, in grey levels; ``network`` reads 0 to ``white``, ``model`` 0 to 1."""
    with torch.no_grad():
        return 255 * float((model(image / white) - network(image) / white).abs().max())


def distance_in_float64(model: nn.Module, network: Released, image: torch.Tensor) -> float:
    """Return the distance without the roundings of float32, which move single values over a rounding threshold."""
    model = model.double()
    if network.arch == "edsr":  # BasicSR keeps the mean in float32, 8e-8 from that of the file
        model.mean = network.state["add_mean.bias"].double().view(1, 3, 1, 1) / 255
    return distance(model, network.double(), image.double())


def equal(one: State, other: State) -> bool:
    """Whether two state dicts have the same keys, dtypes, shapes and bits."""
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and one[key].shape == other[key].shape and torch.equal(one[key], other[key])
        for key in one
    )
