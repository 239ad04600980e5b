"""Pretrained float networks: files of other projects in BasicSR's form, and an RDN with a tail of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from cells import GREY, Network
from torch import nn

from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import build_float
from srq_nni.archs.rdn_arch import RDN
from srq_nni.conversion import convert


def _convolution(inputs: int, outputs: int, side: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, padding=side // 2)


@ARCH_REGISTRY.register()
def RDNOwnTail(**arguments: Any) -> RDN:  # noqa: N802 - the name of an architecture
    """Build RDN with the tail of the pretrained network, which has no float weights for the usual one.

    What it returns is an RDN to the presets, which know networks by their class.
    """
    model = RDN(**arguments)
    features, outputs = model.GFF[1].out_channels, model.UPNet[-1].out_channels * arguments["upscale"] ** 2
    model.UPNet = nn.Sequential(
        _convolution(features, 64, 5),
        nn.ReLU(),
        _convolution(64, 32, 3),
        nn.ReLU(),
        _convolution(32, outputs, 3),
        _convolution(outputs, outputs, 3),
        nn.PixelShuffle(arguments["upscale"]),
    )
    return model


def float_weights(described: Network, data: Path, folder: Path) -> Path:
    """Return the file of a network's float weights with BasicSR's keys, converted once into ``folder`` if need be.

    Student, teacher and float row read this one file.
    """
    given, done = described.weights_in(data), folder / "float.pth"
    if not described.source:
        return given
    if done.exists():
        return done
    if described.block["type"] == RDNOwnTail.__name__:
        _convert_with_own_tail(given, done, described.source)
    else:
        converted = convert(given, done, described.source).network
        assert converted == described.block, f"{described.weights} is {converted}, not {dict(described.block)}"
    return done


def _convert_with_own_tail(given: Path, done: Path, source: str) -> None:
    """Write body and tail of an RDN of images in [0, 1] as one of grey levels, in which bounds are counted.

    All between its convolutions is ReLU, sum and concatenation, so biases ``GREY`` times as large make features so,
    and the output after the division by ``img_range`` is the same.
    """
    part = done.with_suffix(".body.pth")
    convert(given, part, source, body_only=True, overwrite=True)
    tail = {key: value for key, value in checkpoint.read(given).items() if key.startswith("UPNet.")}
    state = {**checkpoint.read(part)["params"], **tail}
    checkpoint.save({"params": {key: GREY * v if key.endswith(".bias") else v for key, v in state.items()}}, done)
    part.unlink()


def float_network(described: Network, weights: Path) -> torch.nn.Module:
    """Return the pretrained network in eval mode."""
    model = build_float(described.block)
    checkpoint.load_weights(model, weights)
    return model.eval()
