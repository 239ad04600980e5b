"""Proof that the integers of a network add up exactly, and how much of its work they are.

With integer operands a convolution is exact in float32 (int32), in any order of summation, if every partial sum stays
below 2^24 (2^31). ``max over output channels of ||w||_1 max|code| + |bias|`` bounds them all. The proof is about sums
of products: it needs a direct or GEMM kernel, since Winograd and FFT kernels compute other numbers on the way, and it
ends where the accumulator is multiplied by the scales.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn

from srq_nni.speedup.integers import FLOAT32_LIMIT, INT32_LIMIT, IntegerConv, IntegerNetwork, read_integers
from srq_nni.speedup.sources import default_sample, run_once
from srq_nni.speedup.table import text_table


@dataclass(frozen=True)
class CertificateRow:
    """One quantized convolution; bits are None where a tensor is not quantized.

    Attributes:
        name: module path.
        activation_bits, weight_bits: widths asked for.
        bound: largest magnitude of a partial sum, in steps of the accumulator; 0 unless both operands are quantized.
        macs: multiply-accumulates at the size the certificate was made for.
    """

    name: str
    activation_bits: int | None
    weight_bits: int | None
    bound: int
    macs: int

    @property
    def is_integer(self) -> bool:
        """Whether both operands are quantized."""
        return self.activation_bits is not None and self.weight_bits is not None

    @property
    def exact_in_float32(self) -> bool:
        """Whether any order of float32 additions gives the exact sum."""
        return self.is_integer and self.bound < FLOAT32_LIMIT

    @property
    def exact_in_int32(self) -> bool:
        """Whether no int32 accumulator can overflow."""
        return self.is_integer and self.bound < INT32_LIMIT

    @property
    def largest_sum(self) -> str:
        """``bound`` as text for tables."""
        return f"{self.bound:,}" if self.is_integer else "-"

    @property
    def float32(self) -> str:
        """``exact_in_float32`` as text for tables."""
        return _verdict(self.is_integer, self.exact_in_float32)


@dataclass(frozen=True)
class Certificate:
    """The rows of all quantized convolutions and the work of the whole network.

    Attributes:
        rows: in the order of the network.
        total_macs: multiply-accumulates of all convolutions and linear layers, quantized or not.
        input_size: (height, width) they were counted at.
    """

    rows: tuple[CertificateRow, ...]
    total_macs: int
    input_size: tuple[int, int]

    @property
    def coverage(self) -> float:
        """Share of the multiply-accumulates whose two operands are both quantized, from 0 to 1."""
        return sum(row.macs for row in self.rows if row.is_integer) / self.total_macs if self.total_macs else 0.0

    @property
    def exact_in_float32(self) -> bool:
        """Whether every convolution with integer operands is exact in float32."""
        return all(row.exact_in_float32 for row in self.rows if row.is_integer)

    @property
    def exact_in_int32(self) -> bool:
        """Whether every convolution with integer operands is exact in int32."""
        return all(row.exact_in_int32 for row in self.rows if row.is_integer)

    def __str__(self) -> str:
        head = ("layer", "activation", "weight", "largest sum", "of 2^24", "float32", "int32")
        lines = [
            (
                row.name,
                _bits(row.activation_bits),
                _bits(row.weight_bits),
                row.largest_sum,
                f"{row.bound / FLOAT32_LIMIT:.2%}" if row.is_integer else "-",
                row.float32,
                _verdict(row.is_integer, row.exact_in_int32),
            )
            for row in self.rows
        ]
        size = f"{self.input_size[0]}x{self.input_size[1]}"
        return (
            f"{text_table(head, lines)}\ncoverage {self.coverage:.1%} of {self.total_macs / 1e9:.2f} GMACs at {size}: "
            "both operands quantized"
        )


def certify(
    model: nn.Module,
    input_size: tuple[int, int] = (64, 64),
    *,
    channels: int | None = None,
    integer_bias: bool = False,
    integers: IntegerNetwork | None = None,
) -> Certificate:
    """Return the certificate of ``model``, counting its work at ``input_size`` (height, width). ``model`` is unchanged.

    Args:
        model: network with quantizers.
        input_size: size of the low-resolution input in pixels; the share of work hardly depends on it.
        channels: of the input; by default those of the first convolution.
        integer_bias: count biases as integers of the accumulator, see ``read_integers``.
        integers: of ``model``, if they have been read already; ``integer_bias`` is that of theirs then.

    Raises:
        ExportError: as ``read_integers``, or if the network does not run at ``input_size``.
    """
    network = copy.deepcopy(model).float().cpu().eval()
    if integers is None:
        sample = default_sample(network, input_size, channels)
        integers = read_integers(network, integer_bias=integer_bias, sample=sample)
    macs = count_macs(network, input_size, channels)
    rows = tuple(_row(layer, macs.get(name, 0)) for name, layer in integers.layers.items())
    return Certificate(rows, sum(macs.values()), input_size)


def count_macs(model: nn.Module, input_size: tuple[int, int], channels: int | None = None) -> dict[str, int]:
    """Return the multiply-accumulates of each convolution and linear layer in one forward of one image.

    Those of a gate are not counted. The forward runs without gradient in the mode ``model`` is in; hooks are removed
    again.

    Raises:
        ExportError: if the network has no convolution or does not run at ``input_size``.
    """
    found: dict[str, int] = {}
    handles = []
    sample = default_sample(model, input_size, channels)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue

        def count(layer: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor, name: str = name) -> None:
            weight = layer.weight
            assert isinstance(weight, torch.Tensor)
            found[name] = found.get(name, 0) + output.numel() * math.prod(weight.shape[1:])

        handles.append(module.register_forward_hook(count))
    try:
        run_once(model, sample)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _row(layer: IntegerConv, macs: int) -> CertificateRow:
    activation = None if layer.input is None else layer.input.bits
    weight = None if layer.weight is None else layer.weight.bits
    return CertificateRow(layer.name, activation, weight, layer.bound, macs)


def _bits(bits: int | None) -> str:
    return "float" if bits is None else str(bits)


def _verdict(applies: bool, exact: bool) -> str:
    return ("exact" if exact else "NOT EXACT") if applies else "-"
