"""What a finished network is measured by: PSNR and SSIM on Y, coverage, size, and bit operations (methods.md, 7, 8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from images import Batch, Pair, image_bytes, image_tensor
from torch import nn

from srq_nni.quantization.grid import FLOAT_BITS
from srq_nni.quantization.layers import quantized_convolutions
from srq_nni.speedup.sources import default_sample, input_sources, quantizer_names

from basicsr.metrics import calculate_psnr, calculate_ssim  # isort: skip
from basicsr.utils.matlab_functions import imresize  # isort: skip

OUTPUT = (1280, 720)  # pixels, for which the papers count operations
Upscaler = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Score:
    """Means over images of per-image PSNR (dB) and SSIM on Y, after rounding to bytes."""

    psnr: float
    ssim: float


def score(upscale: Upscaler, pairs: list[Pair], crop: int) -> Score:
    """Measure a function from RGB bytes to RGB bytes; ``crop`` border pixels do not count."""
    psnr, ssim = [], []
    for pair in pairs:
        images = upscale(pair.low)[..., ::-1], pair.high[..., ::-1]  # BasicSR's metrics read BGR
        psnr.append(calculate_psnr(*images, crop_border=crop, test_y_channel=True))
        ssim.append(calculate_ssim(*images, crop_border=crop, test_y_channel=True))
    return Score(float(np.mean(psnr)), float(np.mean(ssim)))


def bicubic(scale: int) -> Upscaler:
    """Return MATLAB's bicubic enlargement."""

    def upscale(low: np.ndarray) -> np.ndarray:
        high = imresize(low.astype(np.float64) / 255, scale)
        return (high.clip(0, 1) * 255).round().astype(np.uint8)

    return upscale


def network(model: nn.Module) -> Upscaler:
    """Return the enlargement that a network computes; call it in ``evaluating``."""

    def upscale(low: np.ndarray) -> np.ndarray:
        return image_bytes(model(image_tensor(low))[0])

    return upscale


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put a network into eval mode, without gradients, and back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        model.train(training)


def quick_psnr(model: nn.Module, batch: Batch, crop: int, at_once: int = 6) -> float:
    """Return the mean PSNR on Y over the images of a batch, in dB."""
    scores = []
    with evaluating(model):
        for low, high in zip(batch["lq"].split(at_once), batch["gt"].split(at_once), strict=True):
            for made, true in zip(model(low), high, strict=True):
                images = image_bytes(made)[..., ::-1], image_bytes(true)[..., ::-1]
                scores.append(calculate_psnr(*images, crop_border=crop, test_y_channel=True))
    return float(np.mean(scores))


@dataclass(frozen=True)
class Cost:
    """Size and work of a network.

    Attributes:
        coverage: share of multiply-accumulates whose two operands are both quantized.
        size: parameters in millions of 32-bit equivalents, as both papers count them.
        body_kb: bytes / 1000 of the quantized weights at their bits.
        bops: sum of multiply-accumulates * bits of weight * bits of input for an output of ``OUTPUT``, in 1e12.
    """

    coverage: float
    size: float
    body_kb: float
    bops: float


def own_widths(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the bits of weight and input of each convolution of a network with our quantizers; 32 means float."""
    quantizers, sources = quantizer_names(model), input_sources(model)
    return {
        name: (layer.weight_quantizer.bits, quantizers[sources[name]].bits if name in sources else FLOAT_BITS)
        for name, layer in quantized_convolutions(model)
        if layer.weight_quantizer is not None
    }


def cost(model: nn.Module, scale: int, widths: Mapping[str, tuple[int, int]]) -> Cost:
    """Count a network by running it once.

    Args:
        model: network whose plain or quantized convolutions are counted.
        scale: its scale factor.
        widths: name of a convolution -> bits of its weight and of its input; those that are missing are float.
    """
    macs: dict[str, float] = {}
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    sample = default_sample(model)
    area = sample.shape[2] * sample.shape[3] * scale**2
    weights = {name: _weight(module) for name, module in convolutions.items()}

    def count(name: str, output: torch.Tensor) -> None:
        macs[name] = macs.get(name, 0.0) + weights[name].numel() * output.shape[2] * output.shape[3] / area

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: count(name, output))
        for name, module in convolutions.items()
        if not any(part == "gate" for part in name.split("."))
    ]
    try:
        with evaluating(model):
            model(sample)
    finally:
        for handle in handles:
            handle.remove()
    both = {name: widths.get(name, (FLOAT_BITS, FLOAT_BITS)) for name in macs}
    integer = sum(macs[name] for name, pair in both.items() if max(pair) < FLOAT_BITS)
    work = sum(macs[name] * pair[0] * pair[1] for name, pair in both.items()) * OUTPUT[0] * OUTPUT[1]
    bits = sum(weights[name].numel() * pair[0] for name, pair in both.items() if pair[0] < FLOAT_BITS)
    biases = {name: 0 if convolutions[name].bias is None else convolutions[name].bias.numel() for name in macs}
    size = sum((weights[name].numel() + biases[name]) * both[name][0] / FLOAT_BITS for name in macs)
    return Cost(integer / sum(macs.values()), size / 1e6, bits / 8e3, work / 1e12)


def _weight(convolution: nn.Module) -> torch.Tensor:
    """Return the weight, which NNI keeps in its wrapper."""
    wrapper = getattr(convolution, "_nni_wrapper", None)
    weight: torch.Tensor = convolution.weight if wrapper is None else getattr(wrapper, "weight", convolution.weight)
    return weight
