"""Where quantizers sit in a network: on the weight, the first input or the first output of a module.

A site is a pair (module, target) with NNI's target names. Convolutions become ``QuantConv2d``, which keeps the names of
the float parameters, so a float checkpoint fits a quantized network and the other way round. Any other module gets
its activation quantizers by hooks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from srq_nni.errors import QuantizationError, did_you_mean
from srq_nni.quantization.activation import ActivationQuantizer, Mode
from srq_nni.quantization.weight import WeightQuantizer

WEIGHT, INPUT, OUTPUT = "weight", "_input_0", "_output_0"
CHILD_NAMES = {WEIGHT: "weight_quantizer", INPUT: "input_quantizer", OUTPUT: "output_quantizer"}


class QuantConv2d(nn.Conv2d):
    """``conv2d(Q_in(x), Q_w(weight), bias)``; either quantizer may be missing. The bias stays in floating point."""

    input_quantizer: ActivationQuantizer | None
    weight_quantizer: WeightQuantizer | None

    @classmethod
    def from_float(cls, conv: nn.Conv2d) -> QuantConv2d:
        """Return a quantizable convolution that shares the parameters and hooks of ``conv``.

        Raises:
            QuantizationError: if ``conv`` is a subclass with a forward of its own.
        """
        if type(conv) is not nn.Conv2d:
            raise QuantizationError(
                f"a {type(conv).__name__} cannot be quantized as a convolution; quantize nn.Conv2d modules"
            )
        quantized = cls.__new__(cls)
        quantized.__dict__.update(conv.__dict__)
        quantized._modules = dict(conv._modules)
        quantized.input_quantizer = None
        quantized.weight_quantizer = None
        return quantized

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the convolution of ``x`` (N, C, H, W) with both operands on their grids."""
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        weight = self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)
        return self._conv_forward(x, weight, self.bias)


def attach_quantizer(model: nn.Module, name: str, target: str, quantizer: nn.Module) -> None:
    """Put ``quantizer`` on ``target`` (``weight``, ``_input_0`` or ``_output_0``) of the module called ``name``.

    The parameters of the module keep their names; the quantizer's state appears below ``{name}.{kind}_quantizer``.

    Raises:
        QuantizationError: for an unknown module or target, a weight that is not a convolution's, or a place that
            already has a quantizer. The model is unchanged then.
    """
    modules = dict(model.named_modules())
    if name not in modules:
        raise QuantizationError(f"the network has no module '{name}'{did_you_mean(name, modules)}")
    if target not in CHILD_NAMES:
        raise QuantizationError(
            f"target '{target}' of module '{name}' is not known; give one of {', '.join(CHILD_NAMES)}"
            f"{did_you_mean(target, CHILD_NAMES)}"
        )
    module = modules[name]
    child = CHILD_NAMES[target]
    if getattr(module, child, None) is not None:
        raise QuantizationError(f"target '{target}' of module '{name}' already has a quantizer; name it only once")
    if isinstance(module, nn.Conv2d) and target != OUTPUT:
        if not isinstance(module, QuantConv2d):
            if module is model:
                raise QuantizationError(
                    "the network itself is a convolution and cannot be replaced; wrap it: nn.Sequential(conv)"
                )
            quantized = QuantConv2d.from_float(module)
            _replace(model, module, quantized)
            module = quantized
        setattr(module, child, quantizer)
        return
    if target == WEIGHT:
        raise QuantizationError(
            f"target 'weight' of module '{name}' ({type(module).__name__}) cannot be quantized; only convolutions can"
        )
    module.add_module(child, quantizer)
    if target == INPUT:
        module.register_forward_pre_hook(_quantize_input)
    else:
        module.register_forward_hook(_quantize_output)


def activation_quantizers(model: nn.Module) -> Iterator[tuple[str, ActivationQuantizer]]:
    """Yield (name, quantizer) of every activation quantizer, in the order of registration."""
    for name, module in model.named_modules():
        if isinstance(module, ActivationQuantizer):
            yield name, module


def quantized_convolutions(model: nn.Module) -> Iterator[tuple[str, QuantConv2d]]:
    """Yield (name, convolution) of every convolution whose weight is quantized."""
    for name, module in model.named_modules():
        if isinstance(module, QuantConv2d) and module.weight_quantizer is not None:
            yield name, module


def set_mode(model: nn.Module, mode: Mode) -> None:
    """Put all quantizers of ``model`` into ``mode``; while activations stay float, weights do too."""
    for module in model.modules():
        if isinstance(module, ActivationQuantizer):
            module.set_mode(mode)
        elif isinstance(module, WeightQuantizer):
            module.enabled = mode in ("quantize", "calibrate")


def set_bounds_from_statistics(model: nn.Module) -> None:
    """Set the bounds of all activation quantizers to what they observed."""
    for _, quantizer in activation_quantizers(model):
        quantizer.set_bounds_from_statistics()


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Start all bounds from what float activations show, without training; leaves ``model`` quantizing, in eval mode.

    Args:
        model: network with quantizers.
        batches: inputs of ``model``, (N, C, H, W).
    """
    model.eval()
    set_mode(model, "observe")
    for batch in batches:
        model(batch)
    set_bounds_from_statistics(model)
    set_mode(model, "quantize")


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` in every place where ``old`` stands: a module may be registered under several names."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new)


def _quantize_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (module.get_submodule(CHILD_NAMES[INPUT])(args[0]), *args[1:])


def _quantize_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    first, *rest = output if isinstance(output, tuple) else (output,)
    # A copy: the quantizer keeps its result for the backward pass, and a ReLU in place often comes next.
    quantized = module.get_submodule(CHILD_NAMES[OUTPUT])(first).clone()
    return (quantized, *rest) if isinstance(output, tuple) else quantized
