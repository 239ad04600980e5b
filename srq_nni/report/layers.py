"""What each quantizer does to the tensor it sees: distribution, grid, clipped share, signal-to-noise ratio."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from srq_nni.progress import track
from srq_nni.quantization.activation import ActivationQuantizer, DDTBActivation
from srq_nni.quantization.grid import along_channels
from srq_nni.quantization.layers import activation_quantizers, quantized_convolutions

BINS = 96


@dataclass(frozen=True)
class TensorReport:
    """One quantized tensor.

    Attributes:
        name: ``MODULE.input``, ``MODULE.output`` or ``MODULE.weight``.
        bits: width of its grid.
        snr: signal-to-noise ratio of quantization, 10 log10(sum x^2 / sum (x - Q(x))^2), in dB; infinite without error.
        scale: step of the grid, in the unit of the tensor; the mean where each channel has one.
        levels: values of the grid, from the smallest; those of the static bounds where a gate scales them.
        clipped: share of values beyond the outermost level by more than half a step, from 0 to 1.
        lowest, highest: range of the histogram.
        counts: values in each of its ``BINS`` equal bins.
        gated: whether a gate scales the bounds for each image.
    """

    name: str
    bits: int
    snr: float
    scale: float
    levels: tuple[float, ...]
    clipped: float
    lowest: float
    highest: float
    counts: tuple[int, ...]
    gated: bool = False


class _Sums:
    """Range, histogram and errors of one tensor over all images; ``range_only`` in the first of two passes."""

    def __init__(self, levels: tuple[float, ...], distance: float) -> None:
        self.lowest, self.highest = math.inf, -math.inf
        self.outside = (levels[0] - distance / 2, levels[-1] + distance / 2)
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.signal = self.noise = self.clipped = self.total = 0.0

    def see_range(self, x: torch.Tensor) -> None:
        low, high = torch.aminmax(x)
        self.lowest, self.highest = min(self.lowest, float(low)), max(self.highest, float(high))

    def see_values(self, x: torch.Tensor) -> None:
        width = self.highest - self.lowest or 1.0
        bins = ((x.double() - self.lowest) / width * BINS).long().clamp_(0, BINS - 1).flatten()
        self.counts += torch.bincount(bins, minlength=BINS).cpu()
        self.clipped += float(((x < self.outside[0]) | (x > self.outside[1])).sum())
        self.total += x.numel()

    def see_errors(self, x: torch.Tensor, quantized: torch.Tensor) -> None:
        self.signal += float(x.double().square().sum())
        self.noise += float((x.double() - quantized.double()).square().sum())


def signal_to_noise(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise) in dB; infinity without noise, minus infinity without signal.

    >>> signal_to_noise(100.0, 1.0)
    20.0
    """
    if noise <= 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


@torch.no_grad()
def tensor_reports(model: nn.Module, images: Iterable[torch.Tensor]) -> list[TensorReport]:
    """Return a report of each activation over ``images`` and of each quantized weight, in the order of the network.

    Args:
        model: quantized network in eval mode; it is unchanged.
        images: inputs (N, C, H, W) in the range of its training; iterated twice.
    """
    images = list(images)
    grids = {name: quantizer.static_codes() for name, quantizer in activation_quantizers(model)}
    levels = {name: _levels(*grid) for name, grid in grids.items()}
    sums = {name: _Sums(levels[name], grids[name][0]) for name in grids}
    for last_pass in (False, True):
        handles = [
            quantizer.register_forward_hook(_watch(sums[name], last_pass))
            for name, quantizer in activation_quantizers(model)
        ]
        try:
            for image in track(images, "Measuring errors" if last_pass else "Measuring ranges", "image"):
                model(image)
        finally:
            for handle in handles:
                handle.remove()
    return [
        _report(_tensor_name(name), quantizer.bits, grids[name][0], levels[name], sums[name], _is_gated(quantizer))
        for name, quantizer in activation_quantizers(model)
        if sums[name].total
    ] + [_weight_report(name, layer) for name, layer in quantized_convolutions(model)]


def _watch(sums: _Sums, last_pass: bool) -> Any:
    def hook(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if last_pass:
            sums.see_values(args[0])
            sums.see_errors(args[0], output)
        else:
            sums.see_range(args[0])

    return hook


def _weight_report(name: str, layer: Any) -> TensorReport:
    """Channels with scales of their own are shown in steps of their mean, their errors as they are."""
    weight, quantizer = layer.weight.detach(), layer.weight_quantizer
    grid = quantizer.grid(weight)
    scales = torch.tensor(grid.scale, dtype=torch.float64)
    scale = float(scales.mean())
    shown = weight * along_channels(scale / scales, weight).to(weight) if scales.dim() else weight
    levels = _levels(scale, grid.minimum, grid.maximum, grid.stride)
    sums = _Sums(levels, scale * grid.stride)
    sums.see_range(shown)
    sums.see_values(shown)
    sums.see_errors(weight, quantizer(weight))
    return _report(f"{name}.weight", quantizer.bits, scale, levels, sums, False)


def _report(name: str, bits: int, scale: float, levels: tuple[float, ...], sums: _Sums, gated: bool) -> TensorReport:
    counts = tuple(int(count) for count in sums.counts)
    snr = signal_to_noise(sums.signal, sums.noise)
    return TensorReport(
        name, bits, snr, scale, levels, sums.clipped / sums.total, sums.lowest, sums.highest, counts, gated
    )


def _levels(scale: float, minimum: int, maximum: int, stride: int = 1) -> tuple[float, ...]:
    return tuple(scale * code for code in range(minimum, maximum + 1, stride))


def _tensor_name(quantizer: str) -> str:
    return quantizer.removesuffix("_quantizer")


def _is_gated(quantizer: ActivationQuantizer) -> bool:
    return isinstance(quantizer, DDTBActivation) and quantizer.gate is not None and bool(quantizer.gate_is_applied)
