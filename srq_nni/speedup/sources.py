"""Which quantizer feeds which layer: found by running the network once.

A layer reads integers if its input is the very tensor a quantizer returned, whether that quantizer is its own, sits on
the block around it (wiring ``deploy``), or on the output of the layer before. Any operation in between, even in place,
makes the input a float.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from srq_nni.errors import ExportError
from srq_nni.quantization.activation import ActivationQuantizer
from srq_nni.quantization.layers import QuantizedLayer

_TAG = "_srq_source"


def quantizer_names(model: nn.Module) -> dict[str, ActivationQuantizer]:
    """Return each activation quantizer once, by the first path under which it is registered."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ActivationQuantizer)}


def default_sample(model: nn.Module, size: tuple[int, int] = (32, 32), channels: int | None = None) -> torch.Tensor:
    """Return zeros (1, C, H, W) on the device of ``model``, C being that of its first convolution if not given.

    Raises:
        ExportError: if the network has no convolution to tell C.
    """
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise ExportError("the network has no convolution to count; give a network of nn.Conv2d modules")
    return torch.zeros(1, channels or first.in_channels, *size, device=first.weight.device)


@torch.no_grad()
def run_once(model: nn.Module, sample: torch.Tensor) -> None:
    """Run ``model`` on ``sample`` without gradient.

    Raises:
        ExportError: if it does not run, with its own words.
    """
    try:
        model(sample)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ExportError(
            f"the network does not run on an input of shape {tuple(sample.shape)}: {error}; "
            "give another input_size or channels"
        ) from error


def input_sources(model: nn.Module, sample: torch.Tensor | None = None) -> dict[str, str]:
    """Return, for each quantized layer that reads integers, the path of the quantizer that wrote them.

    A layer that never ran, read a float, or read from two quantizers in turn is left out, unless the quantizer is its
    own.

    Args:
        model: network with quantizers; its mode and state stay as they are in eval mode.
        sample: input of ``model``, by default ``default_sample``.
    """
    found: dict[str, set[str | None]] = {}
    handles = []
    paths = {id(quantizer): name for name, quantizer in quantizer_names(model).items()}

    def tag(quantizer: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        setattr(output, _TAG, (paths[id(quantizer)], output._version))

    def look(name: str, x: Any) -> None:
        source, version = getattr(x, _TAG, (None, None))
        found.setdefault(name, set()).add(source if source and x._version == version else None)

    for name, module in model.named_modules():
        if isinstance(module, ActivationQuantizer):
            handles.append(module.register_forward_hook(tag))
        elif isinstance(module, QuantizedLayer):
            if module.input_quantizer is not None:
                found[name] = {paths[id(module.input_quantizer)]}
            else:
                handles.append(module.register_forward_pre_hook(_looker(name, look)))
    try:
        run_once(model, default_sample(model) if sample is None else sample)
    finally:
        for handle in handles:
            handle.remove()
    return {name: source for name, (source, *others) in found.items() if source is not None and not others}


def _looker(name: str, look: Any) -> Any:
    def before(layer: nn.Module, args: tuple[Any, ...]) -> None:
        look(name, args[0] if args else None)

    return before
