"""Where quantizers sit in a network: on the weight, the first input or the first output of a module.

A site is a pair (module, target) with NNI's target names. Convolutions become ``QuantConv2d``, which keeps the names of
the float parameters, so a float checkpoint fits a quantized network and the other way round. Any other module gets
its activation quantizers by hooks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.nn import functional as F

from srq_nni.errors import QuantizationError, did_you_mean
from srq_nni.quantization.activation import ActivationQuantizer, DDTBActivation, Mode
from srq_nni.quantization.gate import Gate
from srq_nni.quantization.targets import (
    INPUT,
    INPUT_PREFIX,
    LAYERS_WITH_WEIGHTS,
    WEIGHT,
    canonical_target,
    input_names,
    is_quantizer_name,
    quantizer_name,
)
from srq_nni.quantization.weight import WeightQuantizer


class QuantizedLayer(nn.Module):
    """What a convolution and a linear layer share: a quantizer of the first input and one of the weight."""

    float_type: ClassVar[type[nn.Module]]
    input_quantizer: ActivationQuantizer | None
    weight_quantizer: WeightQuantizer | None

    @classmethod
    def from_float(cls, layer: nn.Module) -> Self:
        """Return a quantizable layer that shares the parameters and hooks of ``layer``.

        Raises:
            QuantizationError: if ``layer`` is a subclass with a forward of its own.
        """
        if type(layer) is not cls.float_type:
            wanted = cls.float_type.__name__
            kind = {"Conv2d": "a convolution", "Linear": "a linear layer"}[wanted]
            raise QuantizationError(
                f"a {type(layer).__name__} cannot be quantized as {kind}; quantize nn.{wanted} modules"
            )
        quantized = cls.__new__(cls)
        quantized.__dict__.update(layer.__dict__)
        quantized._modules = dict(layer._modules)
        quantized.input_quantizer = None
        quantized.weight_quantizer = None
        return quantized

    def on_grids(self, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the input and the weight, each on its grid if it has a quantizer."""
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        return x, weight if self.weight_quantizer is None else self.weight_quantizer(weight)


class QuantConv2d(QuantizedLayer, nn.Conv2d):
    """``conv2d(Q_in(x), Q_w(weight), bias)``; either quantizer may be missing. The bias stays in floating point."""

    float_type = nn.Conv2d

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the convolution of ``x`` (N, C, H, W) with both operands on their grids."""
        return self._conv_forward(*self.on_grids(x, self.weight), self.bias)


class QuantLinear(QuantizedLayer, nn.Linear):
    """``linear(Q_in(x), Q_w(weight), bias)``; either quantizer may be missing. The bias stays in floating point."""

    float_type = nn.Linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product of ``x`` (N, ..., C) with the weight, both operands on their grids."""
        return F.linear(*self.on_grids(x, self.weight), self.bias)


class QuantSequential(nn.Sequential):
    """A sequence that does not run the quantizers of its own input and output as members of the sequence."""

    @classmethod
    def from_float(cls, sequence: nn.Sequential) -> Self:
        """Return a sequence that shares the modules and hooks of ``sequence``."""
        quantized = cls.__new__(cls)
        quantized.__dict__.update(sequence.__dict__)
        quantized._modules = dict(sequence._modules)
        return quantized

    def forward(self, x: Any) -> Any:
        """Run the members in order."""
        for name, member in self._modules.items():
            if member is not None and not is_quantizer_name(name):
                x = member(x)
        return x


def attach_quantizer(model: nn.Module, name: str, target: str, quantizer: nn.Module) -> None:
    """Put ``quantizer`` on a target (``weight``, ``_input_0``, ``_output_0``, ``_input_skip`` ..) of module ``name``.

    The parameters of the module keep their names; the quantizer's state appears below ``{name}.{kind}_quantizer``.

    Raises:
        QuantizationError: for an unknown module or target, a weight that is not a convolution's or a linear layer's, or
            a place that already has a quantizer. The model is unchanged then.
    """
    modules = dict(model.named_modules())
    if name not in modules:
        raise QuantizationError(f"the network has no module '{name}'{did_you_mean(name, modules)}")
    module = modules[name]
    target = canonical_target(module, target, name)
    child = quantizer_name(target)
    if getattr(module, child, None) is not None:
        raise QuantizationError(f"target '{target}' of module '{name}' already has a quantizer; name it only once")
    refuse_gate_on_linear(module, quantizer)
    if isinstance(module, LAYERS_WITH_WEIGHTS) and target in (WEIGHT, INPUT):
        _attach_to_layer(model, module, child, quantizer)
        return
    if isinstance(module, nn.Sequential) and not isinstance(module, QuantSequential):
        module = _put_in_place(model, module, QuantSequential.from_float(module))
    module.add_module(child, quantizer)
    position = int(target.rpartition("_")[2])
    if target.startswith(INPUT_PREFIX):
        argument = (input_names(module) or [""] * (position + 1))[position]
        hook = partial(_quantize_input, child=child, position=position, argument=argument)
        module.register_forward_pre_hook(hook, with_kwargs=True)
    else:
        module.register_forward_hook(partial(_quantize_output, child=child, position=position))


def refuse_gate_on_linear(module: nn.Module, quantizer: nn.Module) -> None:
    """Keep DDTB from giving a gate to a tensor of a linear layer, whose channels are its last axis."""
    if isinstance(module, nn.Linear) and isinstance(quantizer, DDTBActivation):
        quantizer.refuse_gate()


def _attach_to_layer(model: nn.Module, module: nn.Module, child: str, quantizer: nn.Module) -> None:
    if not isinstance(module, QuantizedLayer):
        layer = QuantConv2d if isinstance(module, nn.Conv2d) else QuantLinear
        module = _put_in_place(model, module, layer.from_float(module))
    setattr(module, child, quantizer)


def _put_in_place(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put ``new`` in every place where ``old`` stands, since a module may have several names; return ``new``."""
    if old is model:
        raise QuantizationError(
            f"the network itself is a {type(old).__name__} and cannot be replaced; wrap it: nn.Sequential(network)"
        )
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
    return new


def activation_quantizers(model: nn.Module) -> Iterator[tuple[str, ActivationQuantizer]]:
    """Yield (name, quantizer) of every activation quantizer, in the order of registration."""
    for name, module in model.named_modules():
        if isinstance(module, ActivationQuantizer):
            yield name, module


def bounded_quantizers(model: nn.Module) -> Iterator[ActivationQuantizer | WeightQuantizer]:
    """Yield every quantizer that has something to train beside gates, in the order of registration."""
    for module in model.modules():
        if isinstance(module, ActivationQuantizer | WeightQuantizer) and module.bounds():
            yield module


def bounds_of(model: nn.Module) -> list[nn.Parameter]:
    """Return the bounds of all activation quantizers of ``model``, and the factors of weights whose step is trained."""
    return [bound for quantizer in bounded_quantizers(model) for bound in quantizer.bounds()]


def add_stored_gates(model: nn.Module, state: Mapping[str, Any]) -> list[DDTBActivation]:
    """Give ``model`` the gates that a state dict holds, since training decides which layers have one; return those."""
    added = []
    for name, quantizer in activation_quantizers(model):
        weight = state.get(f"{name}.gate.reduce.weight")
        if not isinstance(weight, torch.Tensor) or weight.ndim != 4:
            continue
        if isinstance(quantizer, DDTBActivation) and quantizer.gate is None:
            quantizer.add_gate(Gate(weight.shape[1]))
            added.append(quantizer)
    return added


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

    Raises:
        QuantizationError: without a batch.
    """
    model.eval()
    set_mode(model, "observe")
    count = 0
    for batch in batches:
        model(batch)
        count += 1
    if not count:
        raise QuantizationError("there is no batch to calibrate on; give at least one input of the network")
    set_bounds_from_statistics(model)
    set_mode(model, "quantize")


def _quantize_input(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, child: str, position: int, argument: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    quantizer = module.get_submodule(child)
    if position < len(args):
        return (*args[:position], quantizer(args[position]), *args[position + 1 :]), kwargs
    if argument in kwargs:
        return args, {**kwargs, argument: quantizer(kwargs[argument])}
    raise QuantizationError(f"input {position} of a {type(module).__name__} was not given, so '{child}' has no tensor")


def _quantize_output(
    module: nn.Module, args: tuple[Any, ...], output: Any, *, child: str = "output_quantizer", position: int = 0
) -> Any:
    items = list(output) if isinstance(output, list | tuple) else [output]
    if position >= len(items):
        raise QuantizationError(
            f"a {type(module).__name__} returned {len(items)} tensors and '{child}' wants number {position}, from 0"
        )
    value = module.get_submodule(child)(items[position])
    # A copy: the quantizer keeps its result for the backward pass, and a ReLU in place often comes next.
    items[position] = value.clone() if value.requires_grad else value
    return type(output)(items) if isinstance(output, list | tuple) else items[0]
