"""SRResNet with batch norm (arXiv 1609.04802) and the parameter names of DDTB's checkpoints."""

from __future__ import annotations

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from srq_nni.errors import OptionError


class ResidualBlockBN(nn.Module):
    """``x + BN(conv(PReLU(BN(conv(x)))))`` without convolution biases."""

    def __init__(self, num_feat: int, prelu_parameters: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_feat, num_feat, 3, 1, 1, bias=False)
        self.in1 = nn.BatchNorm2d(num_feat)
        self.relu = nn.PReLU(prelu_parameters)
        self.conv2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1, bias=False)
        self.in2 = nn.BatchNorm2d(num_feat)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.in2(self.conv2(self.relu(self.in1(self.conv1(x)))))


@ARCH_REGISTRY.register()
class SRResNet(nn.Module):
    """SRResNet with batch norm; BasicSR's MSRResNet is another network and its weights do not fit.

    Args:
        num_in_ch, num_out_ch: image channels.
        num_feat: channels of the body.
        num_block: number of residual blocks.
        upscale: 2 or 4.
        img_range: the network computes on ``x * img_range``; 255 for DDTB's weights, 1 for weights trained on [0, 1].
        bias: biases in the first, last and upsampling convolutions (DDTB: none).
        prelu_per_channel: one PReLU parameter per channel (DDTB: one in all).
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 16,
        upscale: int = 4,
        img_range: float = 255.0,
        bias: bool = False,
        prelu_per_channel: bool = False,
    ) -> None:
        super().__init__()
        if upscale not in (2, 4):
            raise OptionError(f"upscale: {upscale!r} is not supported by SRResNet; give 2 or 4")
        self.img_range = img_range
        slopes = num_feat if prelu_per_channel else 1
        self.conv_input = nn.Conv2d(num_in_ch, num_feat, 9, 1, 4, bias=bias)
        self.relu = nn.PReLU(slopes)
        self.residual = nn.Sequential(*(ResidualBlockBN(num_feat, slopes) for _ in range(num_block)))
        self.conv_mid = nn.Conv2d(num_feat, num_feat, 3, 1, 1, bias=False)
        self.bn_mid = nn.BatchNorm2d(num_feat)
        stages: list[nn.Module] = []
        for _ in range(upscale // 2):
            stages += [nn.Conv2d(num_feat, 4 * num_feat, 3, 1, 1, bias=bias), nn.PixelShuffle(2), nn.PReLU(slopes)]
        self.upscale = nn.Sequential(*stages)
        self.conv_output = nn.Conv2d(num_feat, num_out_ch, 9, 1, 4, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, out, H*s, W*s) in [0, 1] units for ``x`` (N, in, H, W)."""
        shallow = self.relu(self.conv_input(x * self.img_range))
        feature = self.bn_mid(self.conv_mid(self.residual(shallow))) + shallow
        return self.conv_output(self.upscale(feature)) / self.img_range
