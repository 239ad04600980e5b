"""SKT as a loss of BasicSR's registry."""

from __future__ import annotations

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn

from srq_nni.functional import skt_loss


@LOSS_REGISTRY.register()
class SKTLoss(nn.Module):
    """``loss_weight * skt_loss(student, teacher)`` (PAMS).

    Args:
        loss_weight: the papers' 1000 for images in [0, 255] is 1000 / 255 = 3.92 for BasicSR's [0, 1].
    """

    def __init__(self, loss_weight: float = 1000 / 255) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, student_feature: torch.Tensor, teacher_feature: torch.Tensor) -> torch.Tensor:
        """Return the weighted loss of two features (N, C, H, W)."""
        return self.loss_weight * skt_loss(student_feature, teacher_feature)
