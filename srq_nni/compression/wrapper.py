"""NNI's module wrapper around our quantizers.

NNI calls an "apply method" with a tensor and its target space; ours calls the quantizer that hangs on the wrapper. The
wrapper differs from NNI's in what a training step feels: it does not empty the CUDA cache at every forward pass, leaves
no graph tensor behind in the module (so that a network can be copied between steps), and can wrap ``nn.Sequential``.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch
from nni.compression.base.apply_method import quant_apply_methods
from nni.compression.base.fuse_modules import fuse_modules
from nni.compression.base.setting import QuantizationSetting
from nni.compression.base.target_space import QuantizationTargetSpace, TargetType
from nni.compression.base.wrapper import ModuleWrapper
from torch import nn

from srq_nni.compression.clock import TrainingClock
from srq_nni.quantization.targets import quantizer_name
from srq_nni.quantization.weight import WeightQuantizer

APPLY_METHOD = "srq"
logging.getLogger("nni").propagate = False  # it has a handler of its own, and root handlers would repeat every line


def quantizer_of(space: QuantizationTargetSpace) -> nn.Module | None:
    """Return our quantizer of a target, or None for a target of another quantizer."""
    quantizer: nn.Module | None = getattr(space._wrapper, quantizer_name(space._target_name), None)
    return quantizer if space.apply_method == APPLY_METHOD else None


def _apply(target: torch.Tensor, space: QuantizationTargetSpace) -> torch.Tensor:
    quantizer = quantizer_of(space)
    assert quantizer is not None
    quantized: torch.Tensor = quantizer(target)
    # A copy: a ReLU in place may follow an output, and a weight that is float at present must not be a parameter.
    return quantized if space.type is TargetType.INPUT else quantized.clone()


quant_apply_methods[APPLY_METHOD] = _apply


def register_module_type(module: nn.Module) -> None:
    """Tell NNI that a module of this class has inputs and outputs that can be quantized."""
    name = type(module).__name__
    if name not in QuantizationSetting.registry:
        keys = {"quant_dtype": None, "quant_scheme": None, "granularity": "default", "apply_method": APPLY_METHOD}
        QuantizationSetting.register(name, {"_input_": dict(keys), "_output_": dict(keys)})


class QuantizingWrapper(ModuleWrapper):
    """A module with quantizers on some of its tensors."""

    @classmethod
    def adopt(cls, wrapper: ModuleWrapper) -> None:
        """Make one of NNI's wrappers, which is not wrapped at present, one of ours, in place."""
        if type(wrapper) is ModuleWrapper:
            wrapper.__class__ = cls
            if isinstance(wrapper.module, nn.Sequential):
                wrapper.module_forward = partial(_run_sequence, wrapper.module)

    def start(self, clock: TrainingClock) -> None:
        """Let a clock run while this wrapper is on its module."""
        object.__setattr__(self, "clocks", [*getattr(self, "clocks", []), clock])

    def wrap(self) -> None:
        self._order = list(self.module._parameters)
        super().wrap()
        for clock in getattr(self, "clocks", []):
            clock.install()
        for name in self._quantized_parameters():
            # The wrapper's parameter is the weight; this copy would be stored a second time.
            stale = getattr(self.module, name).detach()
            delattr(self.module, name)
            self.module.register_buffer(name, stale, persistent=False)

    @torch.no_grad()
    def unwrap(self) -> None:
        """Take the wrapper off; the module keeps its quantized weight, this wrapper the one that trains."""
        super().unwrap()
        for clock in getattr(self, "clocks", []):
            clock.remove()
        self.module.__dict__.pop("forward", None)  # NNI leaves a bound method in the instance
        for name in self._order:  # and its parameters in another order
            self.module._parameters[name] = self.module._parameters.pop(name)
        for name, space in self._quantized_parameters().items():
            quantizer = quantizer_of(space)
            if isinstance(quantizer, WeightQuantizer) and not self.fused_modules:
                getattr(self.module, name).copy_(quantizer.quantize(space.target))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module with its tensors quantized, masked and recorded, in NNI's order."""
        if getattr(self, "is_bias_correction", False):
            return super().forward(*args, **kwargs)
        args, kwargs = self.patch_inputs(*args, **kwargs)
        spaces = {**self.pruning_target_spaces, **self.quantization_target_spaces}
        parameters = {name: space.target for name, space in spaces.items() if space.type is TargetType.PARAMETER}
        activations: list[Any] = []
        if self.fused_modules:
            parameters, activations = fuse_modules(self, parameters, *args, **kwargs)
        patched = self.patch_params(parameters)
        for name, parameter in patched.items():
            setattr(self.module, name, parameter)
        outputs = self.module_forward(*args, **kwargs)
        for name, parameter in patched.items():
            setattr(self.module, name, None if parameter is None else parameter.detach())
        for activation in activations:
            outputs = activation._nni_wrapper.module_forward(outputs)
        return self.patch_outputs(outputs)

    def _quantized_parameters(self) -> dict[str, QuantizationTargetSpace]:
        spaces = self.quantization_target_spaces.items()
        return {
            name: space
            for name, space in spaces
            if space.type is TargetType.PARAMETER and isinstance(space.target, nn.Parameter)
        }

    def __getstate__(self) -> dict[str, Any]:
        """Leave the clock out of copies and pickles: it belongs to the network that trains."""
        return {key: value for key, value in self.__dict__.items() if key != "clocks"}


def _run_sequence(sequence: nn.Sequential, x: Any) -> Any:
    """Run a sequence whose wrapper is one of its children, which ``nn.Sequential.forward`` would call again."""
    for name, child in sequence._modules.items():
        if name != "_nni_wrapper" and child is not None:
            x = child(x)
    return x
