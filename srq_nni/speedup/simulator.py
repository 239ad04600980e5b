"""The reference for every engine: a network whose quantized convolutions compute in integers.

The usual fake quantization multiplies rounded floats, whose products are rounded again in an order that depends on the
kernel. Here the codes themselves are convolved. They are integers held in floating point, and every partial sum stays
below the limit up to which the dtype is exact, so the result does not depend on order, batch or number of threads.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from srq_nni.errors import ExportError
from srq_nni.quantization.activation import ActivationQuantizer, DDTBActivation
from srq_nni.quantization.grid import IntegerGrid
from srq_nni.quantization.layers import QuantConv2d
from srq_nni.speedup.integers import FLOAT32_LIMIT, IntegerConv, is_gated, read_integers
from srq_nni.speedup.markers import ImageCodes

_CODES = "_srq_codes"
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


class IntegerActivation2d(nn.Module):
    """``scale * clamp(round(x / scale))``, which passes the codes on to the convolution that reads its result.

    With a gate, scale and limits are those of each image, computed as an engine does, in floating point.
    """

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.grid: IntegerGrid | None = None
        self.image_codes: ImageCodes | None = None
        if isinstance(quantizer, DDTBActivation) and is_gated(quantizer):
            self.image_codes = ImageCodes(quantizer)
        else:
            self.grid = quantizer.grid()
            device = quantizer.bounds()[0].device
            limits = {"scale": self.grid.scale, "low": float(self.grid.minimum), "high": float(self.grid.maximum)}
            for name, limit in limits.items():
                self.register_buffer(name, torch.tensor(limit, device=device), persistent=False)

    def grid_of(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return step, smallest and largest code for ``x`` (N, ...), each 0-d or (N, 1, 1, 1), float32."""
        if self.image_codes is not None:
            step, low, high = self.image_codes(x)
            return step, low, high
        return self.get_buffer("scale"), self.get_buffer("low"), self.get_buffer("high")

    def codes(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the codes of ``x`` (N, ...) as integers held in float32, and the step, see ``grid_of``."""
        step, low, high = self.grid_of(x)
        return torch.div(x, step).round_().clamp_(low, high), step

    @staticmethod
    def dequantize(codes: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Return the value of ``codes``, float32; the convolution that reads it gets the codes."""
        value = codes * step
        setattr(value, _CODES, (codes, step, _version(value)))
        return value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` on the grid, float32."""
        return self.dequantize(*self.codes(x.float()))

    def extra_repr(self) -> str:
        grid = self.grid
        return "gated" if grid is None else f"codes {grid.minimum}..{grid.maximum}, scale={grid.scale:.4g}"


class IntegerConv2d(nn.Module):
    """``conv(codes(x), weight codes) * product + bias``, or ``(conv(...) + bias codes) * product``.

    Only the final multiplication and addition round, each once, to float32.
    The accumulator is exact. It runs in float32 where its certified bound is below 2^24, and in float64, rounded to
    the nearest integer, where the bound is larger or the device may choose a Winograd or FFT kernel (any GPU).
    """

    weight_codes: torch.Tensor
    bias: torch.Tensor | None
    bias_codes: torch.Tensor | None
    product: torch.Tensor
    input_quantizer: nn.Module | None

    def __init__(self, conv: QuantConv2d, integers: IntegerConv) -> None:
        super().__init__()
        assert integers.input is not None and integers.weight is not None and integers.weight_codes is not None
        self.name = integers.name
        self.gated = integers.product is None
        self.exact_in_float32 = integers.bound < FLOAT32_LIMIT
        shell = copy.copy(conv)  # gives stride, padding and padding mode; its parameters are never used
        shell._parameters, shell._modules = {"weight": None, "bias": None}, {}
        self._shell = (shell,)  # in a tuple, so that it is not a submodule
        self._modules.update(conv._modules)  # its quantizers; hooks run those of the output
        self.input_quantizer = conv.input_quantizer
        self.weight_quantizer = None
        for hooks in _HOOKS:
            setattr(self, hooks, getattr(conv, hooks))
        device = conv.weight.device
        codes = integers.weight_codes.double().to(device) * integers.fineness
        bias_codes = None if integers.bias_codes is None else integers.bias_codes.double().view(-1, 1, 1).to(device)
        bias = None if integers.bias is None else integers.bias.view(-1, 1, 1).to(device)
        step = torch.tensor(integers.weight.scale) if integers.product is None else integers.product / integers.fineness
        self.register_buffer("weight_codes", codes, persistent=False)
        self.register_buffer("bias_codes", bias_codes, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        step = step.view(-1, 1, 1) if step.dim() else step
        self.register_buffer("product", step.to(device), persistent=False)

    def accumulate(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the exact accumulator of input codes, plus ``bias_codes`` if there are any.

        The result holds integers in float32 or float64.
        """
        dtype = torch.float32 if self.exact_in_float32 and codes.device.type == "cpu" else torch.float64
        with torch.autocast(codes.device.type, enabled=False), torch.backends.nnpack.flags(enabled=False):
            total = self._shell[0]._conv_forward(codes.to(dtype), self.weight_codes.to(dtype), None)
        if dtype == torch.float64:
            total = total.round_()
        return total if self.bias_codes is None else total.add_(self.bias_codes.to(dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the convolution of ``x`` (N, C, H, W, float32) in the unit of the float network, float32.

        Raises:
            ExportError: if ``x`` is not what a quantizer returned.
        """
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        codes, scale, version = getattr(x, _CODES, (x, x, -1))
        if _version(x) != version:
            raise ExportError(
                f"the input of '{self.name}' came from a quantizer when the network was read and does not now; "
                "give a network that takes the same way for every image"
            )
        y = self.accumulate(codes).float() * self.product
        if self.gated:
            y = y * scale
        return y if self.bias is None else y + self.bias


def _version(tensor: torch.Tensor) -> int:
    """Return what changes if ``tensor`` is changed in place; torch does not count that in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


def integer_simulator(
    model: nn.Module, *, integer_bias: bool | None = None, engine: str | None = None, sample: torch.Tensor | None = None
) -> nn.Module:
    """Return a float32 copy of ``model`` in eval mode that computes what an integer engine computes.

    A convolution with both operands quantized becomes an ``IntegerConv2d``. One with only one of them quantized, and
    linear layers, keep their fake quantization, which engines also evaluate in floating point.
    ``model`` is not changed. The copy is for inference: it gives no gradient to weights or bounds.

    Args:
        model: network with quantizers.
        integer_bias: biases on the grid of the accumulator; None does as ``engine`` wants it.
        engine: ``openvino``, ``onnxruntime`` or ``tensorrt``; they differ in the bias alone (ONNX Runtime: integer).
        sample: input (N, C, H, W) that tells which quantizer feeds which convolution; see ``read_integers``.

    Raises:
        ExportError: if no convolution is quantized, a quantizer is not in use, or a grid is degenerate.
    """
    from srq_nni.speedup.engine_rules import get_rules

    if integer_bias is None:
        integer_bias = engine is not None and get_rules(engine).integer_bias
    network = copy.deepcopy(model).float().eval().requires_grad_(False)
    integers = read_integers(network, integer_bias=integer_bias, sample=sample)
    _replace(network, {id(network.get_submodule(path)): _quantizer(network, path) for path in integers.activations})
    convolutions: dict[int, nn.Module] = {}
    for name, layer in integers.layers.items():
        module = network.get_submodule(name)
        if layer.is_integer and isinstance(module, QuantConv2d):
            convolutions[id(module)] = IntegerConv2d(module, layer)
    _replace(network, convolutions)
    return network


def _quantizer(network: nn.Module, path: str) -> nn.Module:
    quantizer = network.get_submodule(path)
    assert isinstance(quantizer, ActivationQuantizer)
    return IntegerActivation2d(quantizer)


def _replace(network: nn.Module, replacements: dict[int, nn.Module]) -> None:
    """Put ``replacements``, by the id of the module, in every place where that module is registered."""
    for path, module in list(network.named_modules(remove_duplicate=False)):
        if id(module) in replacements and path:
            parent, _, child = path.rpartition(".")
            setattr(network.get_submodule(parent), child, replacements[id(module)])
