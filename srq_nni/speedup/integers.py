"""The integers of a trained network: what each quantizer writes and what each quantized convolution multiplies.

One reader serves the simulator, the certificate and the graph builder, so that all three mean the same numbers.

The bias is float32 and added after the scale, as in training, unless ``integer_bias`` puts it on the grid of the
accumulator, as kernels that requantize their output want it (QLinearConv of ONNX Runtime). A step of that grid, input
scale x weight scale, is coarse at low bits: biases rounded to it cost an image 16 dB at 4 bits. Weights of fewer than 8
bits leave room in their byte, though; written as multiples of a power of two they make the steps that much finer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from srq_nni.errors import ExportError, QuantizationError
from srq_nni.quantization.activation import ActivationQuantizer, DDTBActivation
from srq_nni.quantization.grid import IntegerGrid, step_count
from srq_nni.quantization.layers import QuantConv2d, QuantizedLayer
from srq_nni.quantization.weight import WeightQuantizer
from srq_nni.speedup.sources import input_sources, quantizer_names

FLOAT32_LIMIT = 2**24  # below it every integer, and so every partial sum, is a float32
INT32_LIMIT = 2**31


@dataclass(frozen=True)
class IntegerActivation:
    """The codes that one activation quantizer writes.

    Attributes:
        name: place of the quantizer, such as ``body.0.conv1.input``.
        bits: width asked for.
        grid: of its codes; None with an applied gate, which gives each image a grid of its own.
    """

    name: str
    bits: int
    grid: IntegerGrid | None

    @property
    def largest_magnitude(self) -> int:
        """max |code|; a grid per image holds 0 and at most 2^bits - 1 steps."""
        return step_count(self.bits) if self.grid is None else self.grid.largest_magnitude


@dataclass(frozen=True)
class IntegerConv:
    """The integers of one convolution or linear layer; a field is None where the tensor stays in floating point.

    Attributes:
        name: module path in the network.
        input: codes of the input, whichever quantizer wrote them.
        weight: grid of the weight.
        weight_codes: integers in int64, shape of the weight.
        bias: float32, shape (out_channels,), in the unit of the output; None without a bias.
        bias_codes: integers in int64 in steps of ``product / fineness``, in place of ``bias`` with ``integer_bias``.
        product: float32 product of the two scales, the value of one step of the accumulator, 0-d or (out_channels,);
            None with a gate.
        fineness: power of two by which weight codes are multiplied where the bias is an integer, else 1.
    """

    name: str
    input: IntegerActivation | None
    weight: IntegerGrid | None
    weight_codes: torch.Tensor | None
    bias: torch.Tensor | None
    bias_codes: torch.Tensor | None = None
    product: torch.Tensor | None = None
    fineness: int = 1

    @property
    def is_integer(self) -> bool:
        """Whether both operands are on integer grids, so that the convolution can run in integers."""
        return self.input is not None and self.weight is not None

    @property
    def bound(self) -> int:
        """Largest magnitude any partial sum of the accumulator can reach, 0 for a convolution that is not integer.

        ``max over output channels of ||w||_1 max|q| + |bias|``, in steps of ``product / fineness``.
        """
        if self.input is None or self.weight_codes is None:
            return 0
        sums = self.weight_codes.abs().flatten(1).sum(1) * (self.input.largest_magnitude * self.fineness)
        if self.bias_codes is not None:
            sums = sums + self.bias_codes.abs()
        return int(sums.max())


@dataclass(frozen=True)
class IntegerNetwork:
    """All integers of a network.

    Attributes:
        activations: by the module path of the quantizer.
        layers: every layer with a quantized weight or a quantizer on its input, by module path.
    """

    activations: dict[str, IntegerActivation]
    layers: dict[str, IntegerConv]


def read_integers(
    model: nn.Module, *, integer_bias: bool = False, sample: torch.Tensor | None = None
) -> IntegerNetwork:
    """Return the integers of ``model``, in order of registration. ``model`` runs once on ``sample``.

    Args:
        model: network in eval mode with quantizers.
        integer_bias: put biases on the grid of the accumulator.
        sample: input (N, C, H, W) that tells which quantizer feeds which layer; by default zeros of 32 x 32 pixels
            with the channels of the first convolution.

    Raises:
        ExportError: if no layer is quantized, a quantizer does not quantize at present, a grid is degenerate, a bias
            does not fit int32, or the network does not run on the sample.
    """
    names = quantizer_names(model)
    activations = {path: _activation(path, model.get_submodule(path)) for path in names}
    sources = input_sources(model, sample)
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer) and (module.input_quantizer or module.weight_quantizer) is not None:
            source = sources.get(name)
            layers[name] = _layer(name, module, activations[source] if source else None, integer_bias)
    if not layers:
        raise ExportError(
            "the network has no quantized convolution; quantize it first (insert_quantizers, or srq train), "
            "or export it in floating point with export_float_onnx"
        )
    return IntegerNetwork(activations, layers)


def read_convolutions(
    model: nn.Module, *, integer_bias: bool = False, sample: torch.Tensor | None = None
) -> dict[str, IntegerConv]:
    """Return those layers of ``read_integers`` that are convolutions."""
    layers = read_integers(model, integer_bias=integer_bias, sample=sample).layers
    return {name: layer for name, layer in layers.items() if isinstance(model.get_submodule(name), QuantConv2d)}


def finest_multiple(grid: IntegerGrid, largest: int = 127) -> int:
    """Return the largest power of two by which all codes of ``grid`` can be multiplied in a signed range, at least 1.

    Args:
        grid: of a weight.
        largest: end of the range, which begins at ``-largest - 1``.
    """
    room = min(largest / max(grid.maximum, 1), (largest + 1) / max(-grid.minimum, 1))
    return 2 ** max(math.floor(math.log2(room)), 0)


def _layer(name: str, layer: QuantizedLayer, source: IntegerActivation | None, integer_bias: bool) -> IntegerConv:
    given = layer.bias
    bias = given.detach().float() if isinstance(given, torch.Tensor) else None
    if layer.weight_quantizer is None:
        return IntegerConv(name, source, None, None, bias)
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    grid, held = _weight_on_grid(name, layer.weight_quantizer, weight.detach())
    codes = held.long()
    if source is None or source.grid is None:
        return IntegerConv(name, source, grid, codes, bias)
    product = torch.tensor(source.grid.scale) * torch.tensor(grid.scale)
    if bias is None or not integer_bias:
        return IntegerConv(name, source, grid, codes, bias, None, product)
    # codes of 8 bits reach 255 when stored in a byte, and byte_products says what that leaves to the weights
    fineness = finest_multiple(grid, 127 if source.grid.levels <= 128 else 63)
    bias_codes = _bias_codes(name, bias, product / fineness)
    return IntegerConv(name, source, grid, codes, None, bias_codes, product, fineness)


def _activation(path: str, quantizer: nn.Module) -> IntegerActivation:
    assert isinstance(quantizer, ActivationQuantizer)
    name = path.removesuffix("_quantizer")
    if quantizer.mode in ("observe", "float"):
        raise ExportError(
            f"the quantizer '{path}' is in mode '{quantizer.mode}' and passes its input through; "
            "calibrate it and call set_mode('quantize')"
        )
    if is_gated(quantizer):
        return IntegerActivation(name, quantizer.bits, None)
    try:
        return IntegerActivation(name, quantizer.bits, quantizer.grid())
    except QuantizationError as error:
        raise ExportError(f"the quantizer '{path}' has no integer grid: {error}") from error


def is_gated(quantizer: nn.Module) -> bool:
    """Whether a gate scales the bounds of ``quantizer`` for each image."""
    return isinstance(quantizer, DDTBActivation) and bool(quantizer.gate_is_applied)


def _weight_on_grid(name: str, quantizer: WeightQuantizer, weight: torch.Tensor) -> tuple[IntegerGrid, torch.Tensor]:
    if not quantizer.enabled:
        raise ExportError(
            f"the weight quantizer of '{name}' is switched off; call srq_nni.quantization.layers.set_mode(model, "
            "'quantize')"
        )
    if not torch.isfinite(weight).all():
        raise ExportError(f"the weight of '{name}' holds NaN or infinity; load a checkpoint with finite weights")
    try:
        return quantizer.on_grid(weight)
    except QuantizationError as error:
        raise ExportError(f"the weight of '{name}' has no integer grid: {error}") from error


def _bias_codes(name: str, bias: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    codes = torch.div(bias.double(), step.to(bias.device).double()).round()
    if not (torch.isfinite(codes).all() and (codes.abs() < INT32_LIMIT).all()):
        raise ExportError(
            f"the bias of '{name}' needs integers beyond int32 in steps of {float(step.min()):.3g} (input scale x "
            "weight scale); a bound or the weight is near zero: calibrate the quantizer again"
        )
    return codes.long()
