"""Small quantized networks, photos and measures for the tests of the speedup room."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from skimage import data
from torch import nn

from srq_nni import compat
from srq_nni.quantization.activation import ActivationQuantizer
from srq_nni.quantization.layers import attach_quantizer, calibrate
from srq_nni.quantization.methods import METHODS
from srq_nni.speedup.simulator import IntegerActivation2d

compat.prepare()

from basicsr.archs.edsr_arch import EDSR  # noqa: E402

WEIGHTS = Path(__file__).parents[2] / "weights" / "EDSR_x2_f32b5.pth"


astronaut = functools.cache(data.astronaut)


def photo(size: int = 32, top: int = 20, left: int = 150) -> torch.Tensor:
    """Return a crop of a photo, (1, 3, size, size), in [0, 1]."""
    crop = astronaut()[top : top + size, left : left + size]
    return torch.from_numpy(crop.copy()).permute(2, 0, 1)[None].float() / 255


def calibrated(network: nn.Module, images: torch.Tensor) -> nn.Module:
    """Return ``network`` with its bounds set from ``images``, in eval mode."""
    calibrate(network, [images])
    return network


def edsr(method: str, bits: int, *, blocks: int = 1, features: int = 8, trained: bool = False) -> nn.Module:
    """Return a calibrated EDSR x2 in ``paper`` wiring, from seed 0 or with trained float weights."""
    if trained:
        blocks, features = 5, 32
    torch.manual_seed(0)
    network = EDSR(3, 3, num_feat=features, num_block=blocks, upscale=2, rgb_mean=(0, 0, 0))
    if trained:
        network.load_state_dict(torch.load(WEIGHTS, weights_only=True)["params"])
    for block in range(blocks):
        for conv in ("conv1", "conv2"):
            quantize(network, f"body.{block}.{conv}", method, bits)
    return calibrated(network, photo(96, 100))


def quantize(
    network: nn.Module, name: str, method: str, bits: int, activation: ActivationQuantizer | None = None
) -> None:
    """Quantize input and weight of the convolution called ``name``."""
    attach_quantizer(network, name, "_input_0", activation or METHODS[method].activation(bits))
    attach_quantizer(network, name, "weight", METHODS[method].weight(bits))


class Mixed(nn.Module):
    """What architectures do to convolutions: BN, PReLU, groups, padding modes, a shared input, a layer run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 16, 3, padding=1)
        self.normed = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.act = nn.PReLU()
        self.twice = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
        self.left = nn.Conv2d(16, 16, 1, groups=4)
        self.right = nn.Conv2d(16, 16, 3, padding=1)
        self.weight_only = nn.Conv2d(16, 16, 3, padding=1)
        self.input_only = nn.Conv2d(16, 16, 3, padding=1)
        self.tail = nn.Conv2d(48, 12, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.head(x)
        h = self.act(self.norm(self.normed(h))) + h
        side = self.left(h) + self.right(h)
        h = self.twice(torch.relu(self.twice(h)))
        return self.shuffle(self.tail(torch.cat([h, self.weight_only(side), self.input_only(side)], 1)))


def mixed(bits: int) -> nn.Module:
    """Return a calibrated ``Mixed`` with PAMS; BN has random statistics and negative factors."""
    torch.manual_seed(1)
    network = Mixed()
    nn.init.uniform_(network.norm.weight, -1.5, 1.5)
    nn.init.normal_(network.norm.bias, 0, 0.1)
    assert network.norm.running_mean is not None and network.norm.running_var is not None
    nn.init.normal_(network.norm.running_mean, 0, 0.1)
    nn.init.uniform_(network.norm.running_var, 0.1, 1)
    shared = METHODS["pams"].activation(bits)
    quantize(network, "normed", "pams", bits)
    quantize(network, "twice", "pams", bits)
    quantize(network, "left", "pams", bits, shared)
    quantize(network, "right", "pams", bits, shared)
    attach_quantizer(network, "weight_only", "weight", METHODS["pams"].weight(bits))
    attach_quantizer(network, "input_only", "_input_0", METHODS["pams"].activation(bits))
    return calibrated(network, photo(96, 100))


def difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return |a - b| in 8-bit levels, float64."""
    return (a.double() - b.double()).abs() * 255


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the PSNR in dB of two images in [0, 1], infinite for equal ones."""
    error = difference(a, b).square().mean().item()
    return 10 * math.log10(255**2 / error) if error else math.inf


@torch.no_grad()
def run_with_ties(simulator: nn.Module, x: torch.Tensor, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Run an EDSR x2 simulator in ``paper`` wiring; return its output and a mask (N, 1, 2H, 2W).

    The mask holds the pixels that a tie can reach.

    A tie is a value whose code is within ``margin`` steps of the neighbouring code: kernels that round float32 sums in
    another order may choose either.
    """
    layers = [module for module in simulator.modules() if isinstance(module, IntegerActivation2d)]
    reached = x.new_zeros(x.shape[0], 1, *x.shape[2:])

    def look(layer: nn.Module, args: tuple[torch.Tensor]) -> None:
        assert isinstance(layer, IntegerActivation2d) and layer.grid is not None
        ratio = args[0].double() / layer.grid.scale
        tie = (ratio - ratio.floor() - 0.5).abs() < margin
        tie &= (ratio > layer.grid.minimum - 1) & (ratio < layer.grid.maximum + 1)
        radius = len(layers) - layers.index(layer) + 3  # the 3x3 convolutions from here to the output
        spread = F.max_pool2d(tie.any(1, keepdim=True).float(), 2 * radius + 1, 1, radius)
        reached.copy_(torch.maximum(reached, spread))

    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        output = simulator(x)
    finally:
        for handle in handles:
            handle.remove()
    return output, F.interpolate(reached, scale_factor=2).bool()


@torch.no_grad()
def distance_from_ties(simulator: nn.Module, x: torch.Tensor) -> float:
    """Run ``x``; return how near any value before quantization comes to a tie between two codes.

    The unit is the range of the grid: float32 rounds a value of that size to 6e-8 of it, a sum of many to more.
    """
    nearest = [1.0]

    def look(layer: nn.Module, args: tuple[torch.Tensor]) -> None:
        assert isinstance(layer, IntegerActivation2d)
        if layer.image_codes is not None:
            step, low, high = layer.image_codes(args[0].float())
        else:
            assert layer.grid is not None
            step, low, high = (torch.tensor(x) for x in (layer.grid.scale, layer.grid.minimum, layer.grid.maximum))
        ratio = args[0].double() / step
        inside = (ratio > low - 1) & (ratio < high + 1)
        distance = torch.where(inside, (ratio - ratio.floor() - 0.5).abs(), torch.tensor(1.0))
        nearest.append(float((distance / (high - low)).min()))

    handles = [m.register_forward_pre_hook(look) for m in simulator.modules() if isinstance(m, IntegerActivation2d)]
    try:
        simulator(x)
    finally:
        for handle in handles:
            handle.remove()
    return min(nearest)


def photo_away_from_ties(simulator: nn.Module, size: int = 20) -> torch.Tensor:
    """Return that of 16 crops (1, 3, size, size) whose values before quantization keep the largest distance from ties.

    Float layers before a quantizer round their sums in the order of the kernel; a value within that rounding of a tie
    may get either code on a given CPU, and one such code changes a part of the image.
    """
    crops = [photo(size, top, left) for top in (20, 130, 240, 350) for left in (40, 150, 260, 370)]
    return max(crops, key=lambda crop: distance_from_ties(simulator, crop))
