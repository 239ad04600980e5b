"""Which range of values a network was trained on: tried out, for no key of a checkpoint tells it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from srq_nni.archs.quantized_arch import build_float
from srq_nni.conversion.network import Inference
from srq_nni.conversion.tensors import State
from srq_nni.errors import OptionError

SIZE = 24
CLOSE = 0.1  # root mean square, in [0, 1]; a super-resolution network is near bicubic interpolation
FAR = 3.0  # times the error of the best candidate


def settle_range(path: Path, found: Inference, state: State) -> None:
    """Write ``img_range`` into ``found.network``: what the network itself shows, else what the projects train with.

    Args:
        path: for the message.
        found: an inference whose range is not sure.
        state: our float parameters.

    Raises:
        OptionError: if neither decides.
    """
    shown = probe_range(found.network, state)
    if shown is not None:
        found.network["img_range"] = shown
        found.notes.append(f"img_range is not in the file: {shown:g} is what the network enlarges a test image with")
    elif found.as_released:
        found.notes.append("img_range is not in the file: 255 is what the three projects train with")
    else:
        raise OptionError(f"checkpoint '{path}' does not say the range of its images; give --img-range (255 or 1)")


def probe_range(network: Mapping[str, Any], state: State) -> float | None:
    """Return the ``img_range`` of 255 and 1 with which a float network enlarges a smooth image; None if undecided.

    Args:
        network: its ``network_g`` block.
        state: its parameters.
    """
    errors = {}
    for img_range in (255.0, 1.0):
        model = build_float({**network, "img_range": img_range})
        model.load_state_dict(state)
        errors[img_range] = _distance(model.eval(), int(network["num_in_ch"]))
    best, other = sorted(errors, key=lambda img_range: errors[img_range])
    return best if errors[best] < CLOSE and errors[other] > FAR * errors[best] else None


@torch.no_grad()
def _distance(model: nn.Module, channels: int) -> float:
    """Return the root mean square difference between the network's and the bicubic enlargement of a smooth image."""
    ramp = torch.linspace(0, 3, SIZE)
    waves = [torch.sin(ramp[:, None] * (c + 1) + c) * torch.cos(ramp[None] * (c + 2)) for c in range(channels)]
    image = 0.5 + 0.4 * torch.stack(waves)[None]
    output = model(image)
    if output.shape[1] != channels:
        return float("inf")
    bicubic = F.interpolate(image, size=output.shape[2:], mode="bicubic")
    return float((output - bicubic).square().mean().sqrt().nan_to_num(float("inf")))
