"""Small networks that tie, limit or fix their tensors in one way each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2}
RDN = {"type": "RDN", "num_feat": 8, "num_block": 2, "num_layer": 2, "num_grow_ch": 4, "upscale": 2}
SRRESNET = {"type": "SRResNet", "num_feat": 8, "num_block": 2, "upscale": 2, "prelu_per_channel": True}
MSRRESNET = {"type": "MSRResNet", "num_feat": 8, "num_block": 2, "upscale": 2}
PRESETS = (EDSR, RDN, SRRESNET, MSRRESNET)


def conv(inputs: int, outputs: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Between(nn.Module):
    """``last(step(first(x)))``; the step may use ``middle``, which has as many channels on both sides."""

    def __init__(self, step: Callable[[Between, torch.Tensor], torch.Tensor], channels: int = 4) -> None:
        super().__init__()
        self.first, self.middle, self.last = conv(3, 4), conv(4, 4), conv(channels, 3)
        self.norm, self.relu, self.skip = nn.BatchNorm2d(4), nn.ReLU(), nn.Identity()
        self.grouped = conv(4, 4, groups=2)
        self.step = step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.step(self, self.first(x)))


LINEAR = {
    "nothing": lambda net, x: x,
    "a module without effect": lambda net, x: net.skip(x),
    "a factor": lambda net, x: x * 0.1,
    "a factor on a branch": lambda net, x: x + net.middle(x) * 0.1,
    "a convolution that runs twice": lambda net, x: net.middle(net.middle(x)),
    "a sum in place": lambda net, x: x.add_(net.middle(x)),
    "a sum with itself": lambda net, x: x + x,
}
POSITIVE = {
    "ReLU": lambda net, x: net.relu(x),
    "the function": lambda net, x: F.relu(x),
    "a ReLU on one of two": lambda net, x: x + net.relu(net.middle(x)),
    "leaky": lambda net, x: F.leaky_relu(x, 0.1),
}
FIXED = {
    "a number added": lambda net, x: x + 1,
    "a product": lambda net, x: x * net.middle(x),
    "a sigmoid": lambda net, x: torch.sigmoid(x),
    "groups": lambda net, x: net.grouped(x),
    "a share of the sum": lambda net, x: torch.add(x, x, alpha=2),
    "rows beside each other": lambda net, x: torch.cat((x, x), 2),
    "a flip of the channels": lambda net, x: x.flip(1),
    "a division that rounds": lambda net, x: torch.div(x, 2, rounding_mode="floor"),
    "parts by a keyword": lambda net, x: torch.cat(tensors=(x, x), dim=2),
    "what the divisor is": lambda net, x: 1 / x,
    "other channels": lambda net, x: x + net.middle(x).mean(1, keepdim=True),
}
