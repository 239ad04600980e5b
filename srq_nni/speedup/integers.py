"""The integers of a trained network: what each quantized convolution multiplies, adds and scales.

One reader serves the simulator, the certificate and the graph builder, so that all three mean the same numbers.

The bias is float32 and added after the scale, as in training, unless ``integer_bias`` puts it on the grid of the
accumulator (steps of input scale x weight scale), as kernels that requantize their output want it. That grid is as
coarse as the operands: at 4 bits and below a step is often larger than the whole bias, and a network that was not
trained with rounded biases loses its image (16 dB were seen at 4 bits), so it is not the default.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from srq_nni.errors import ExportError, QuantizationError
from srq_nni.quantization.activation import ActivationQuantizer, DDTBActivation
from srq_nni.quantization.grid import IntegerGrid
from srq_nni.quantization.layers import QuantConv2d
from srq_nni.quantization.weight import WeightQuantizer

FLOAT32_LIMIT = 2**24  # below it every integer, and so every partial sum, is a float32
INT32_LIMIT = 2**31


@dataclass(frozen=True)
class IntegerConv:
    """The integers of one convolution; a field is None where the tensor stays in floating point.

    Attributes:
        name: module path in the network.
        input: grid of the input.
        weight: grid of the weight.
        weight_codes: integers in int64, shape of the weight.
        bias: float32, shape (out_channels,), in the unit of the output; None without a bias.
        bias_codes: integers in int64 in steps of ``product``, in place of ``bias`` if ``integer_bias`` was asked for.
        product: float32 product of the two scales, the value of one step of the accumulator.
    """

    name: str
    input: IntegerGrid | None
    weight: IntegerGrid | None
    weight_codes: torch.Tensor | None
    bias: torch.Tensor | None
    bias_codes: torch.Tensor | None
    product: float | None

    @property
    def is_integer(self) -> bool:
        """Whether both operands are on integer grids, so that the convolution can run in integers."""
        return self.input is not None and self.weight is not None

    @property
    def bound(self) -> int:
        """Largest magnitude any partial sum of the accumulator can reach, 0 for a convolution that is not integer.

        ``max over output channels of ||w||_1 max|q| + |bias|``, in steps of ``product``.
        """
        if self.input is None or self.weight_codes is None:
            return 0
        sums = self.weight_codes.abs().flatten(1).sum(1) * self.input.largest_magnitude
        if self.bias_codes is not None:
            sums = sums + self.bias_codes.abs()
        return int(sums.max())


def read_convolutions(model: nn.Module, *, integer_bias: bool = False) -> dict[str, IntegerConv]:
    """Return the integers of every ``QuantConv2d`` that has a quantizer, by module path, in order of registration.

    Raises:
        ExportError: if no convolution is quantized, a quantizer is gated or does not quantize at present, a grid is
            degenerate, or a bias does not fit int32.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantConv2d) and (module.input_quantizer or module.weight_quantizer) is not None:
            found[name] = _read(name, module, integer_bias)
    if not found:
        raise ExportError(
            "the network has no quantized convolution; quantize it first (insert_quantizers, or srq train), "
            "or export it in floating point with export_float_onnx"
        )
    return found


def refuse_misplaced_quantizers(model: nn.Module) -> None:
    """Check that every quantizer sits on the input or the weight of a convolution.

    Raises:
        ExportError: names the first quantizer that sits elsewhere and would be lost on the way to an engine.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        if not isinstance(module, ActivationQuantizer | WeightQuantizer):
            continue
        parent, _, child = name.rpartition(".")
        expected = "input_quantizer" if isinstance(module, ActivationQuantizer) else "weight_quantizer"
        if not isinstance(modules[parent], QuantConv2d) or child != expected:
            kind = type(modules[parent]).__name__
            raise ExportError(
                f"the quantizer '{name}' sits on a {kind}, and only the input and the weight of a convolution can be "
                "written as integers so far; remove it or choose wiring 'paper'"
            )


def _read(name: str, conv: QuantConv2d, integer_bias: bool) -> IntegerConv:
    activation = None if conv.input_quantizer is None else _activation_grid(name, conv.input_quantizer)
    bias = None if conv.bias is None else conv.bias.detach().float()
    if conv.weight_quantizer is None:
        return IntegerConv(name, activation, None, None, bias, None, None)
    weight = conv.weight.detach()
    grid = _weight_grid(name, conv.weight_quantizer, weight)
    codes = grid.codes(weight).long()
    if activation is None:
        return IntegerConv(name, None, grid, codes, bias, None, None)
    product = float(torch.tensor(activation.scale) * torch.tensor(grid.scale))
    if bias is None or not integer_bias:
        return IntegerConv(name, activation, grid, codes, bias, None, product)
    return IntegerConv(name, activation, grid, codes, None, _bias_codes(name, bias, product), product)


def _activation_grid(name: str, quantizer: ActivationQuantizer) -> IntegerGrid:
    if quantizer.mode in ("observe", "float"):
        raise ExportError(
            f"the input quantizer of '{name}' is in mode '{quantizer.mode}' and passes its input through; "
            "calibrate it and call set_mode('quantize')"
        )
    if isinstance(quantizer, DDTBActivation) and bool(quantizer.gate_is_applied):
        raise ExportError(
            f"the input quantizer of '{name}' has an applied gate, so its scale changes with every image and an "
            "integer graph cannot hold it yet; call apply_gate(False) to use the static bounds"
        )
    try:
        return quantizer.grid()
    except QuantizationError as error:
        raise ExportError(f"the input of '{name}' has no integer grid: {error}") from error


def _weight_grid(name: str, quantizer: WeightQuantizer, weight: torch.Tensor) -> IntegerGrid:
    if not quantizer.enabled:
        raise ExportError(
            f"the weight quantizer of '{name}' is switched off; call srq_nni.quantization.layers.set_mode(model, "
            "'quantize')"
        )
    if not torch.isfinite(weight).all():
        raise ExportError(f"the weight of '{name}' holds NaN or infinity; load a checkpoint with finite weights")
    try:
        return quantizer.grid(weight)
    except QuantizationError as error:
        raise ExportError(f"the weight of '{name}' has no integer grid: {error}") from error


def _bias_codes(name: str, bias: torch.Tensor, product: float) -> torch.Tensor:
    codes = torch.div(bias.double(), product).round()
    if not (torch.isfinite(codes).all() and (codes.abs() < INT32_LIMIT).all()):
        raise ExportError(
            f"the bias of '{name}' needs integers beyond int32 in steps of {product:.3g} (input scale x weight scale); "
            "a bound or the weight is near zero: calibrate the quantizer again"
        )
    return codes.long()
