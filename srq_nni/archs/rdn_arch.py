"""RDN (Residual Dense Network, arXiv 1802.08797) with the parameter names of EDSR-PyTorch checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from srq_nni.errors import OptionError


class DenseLayer(nn.Module):
    """``cat(x, relu(conv(x)))``: what enters is carried on, so a quantizer on this module's input acts on both."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(in_channels, growth, 3, 1, 1), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, self.conv(x)), 1)


class RDB(nn.Module):
    """Residual dense block: dense layers, a 1x1 fusion (LFF) and the skip."""

    def __init__(self, num_feat: int, growth: int, num_layer: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(DenseLayer(num_feat + i * growth, growth) for i in range(num_layer)))
        self.LFF = nn.Conv2d(num_feat + num_layer * growth, num_feat, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.LFF(self.convs(x)) + x


def _upsampling_net(num_feat: int, growth: int, num_out_ch: int, upscale: int) -> nn.Sequential:
    if upscale in (2, 3):
        layers = [nn.Conv2d(num_feat, growth * upscale**2, 3, 1, 1), nn.PixelShuffle(upscale)]
    elif upscale == 4:
        layers = [
            nn.Conv2d(num_feat, growth * 4, 3, 1, 1),
            nn.PixelShuffle(2),
            nn.Conv2d(growth, growth * 4, 3, 1, 1),
            nn.PixelShuffle(2),
        ]
    else:
        raise OptionError(f"upscale: {upscale!r} is not supported by RDN; give 2, 3 or 4")
    return nn.Sequential(*layers, nn.Conv2d(growth, num_out_ch, 3, 1, 1))


@ARCH_REGISTRY.register()
class RDN(nn.Module):
    """RDN; the defaults are configuration B of EDSR-PyTorch (16 blocks of 8 layers; A is 20 blocks of 6, growth 32).

    Args:
        num_in_ch, num_out_ch: image channels.
        num_feat: channels between blocks (G0).
        num_block: number of dense blocks (D).
        num_layer: layers per block (C).
        num_grow_ch: growth (G).
        upscale: 2, 3 or 4.
        img_range: the network computes on ``(x - rgb_mean) * img_range``.
        rgb_mean: mean that is subtracted, in [0, 1]; the published networks subtract none.
    """

    mean: torch.Tensor

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 16,
        num_layer: int = 8,
        num_grow_ch: int = 64,
        upscale: int = 4,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> None:
        super().__init__()
        self.img_range = img_range
        self.register_buffer("mean", torch.tensor(rgb_mean).view(1, -1, 1, 1), persistent=False)
        self.SFENet1 = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.SFENet2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.RDBs = nn.ModuleList(RDB(num_feat, num_grow_ch, num_layer) for _ in range(num_block))
        self.GFF = nn.Sequential(nn.Conv2d(num_block * num_feat, num_feat, 1), nn.Conv2d(num_feat, num_feat, 3, 1, 1))
        self.UPNet = _upsampling_net(num_feat, num_grow_ch, num_out_ch, upscale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, out, H*s, W*s) in [0, 1] units for ``x`` (N, in, H, W)."""
        shallow = self.SFENet1((x - self.mean) * self.img_range)
        feature = self.SFENet2(shallow)
        outputs = []
        for block in self.RDBs:
            feature = block(feature)
            outputs.append(feature)
        fused = self.GFF(torch.cat(outputs, 1)) + shallow
        return self.UPNet(fused) / self.img_range + self.mean
