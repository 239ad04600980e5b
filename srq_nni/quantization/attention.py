"""Structured knowledge transfer (SKT) of PAMS: compare where two networks look."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from srq_nni.errors import QuantizationError
from srq_nni.quantization.grid import computable


def attention_map(feature: torch.Tensor) -> torch.Tensor:
    """Return ``flatten(mean_c F^2)`` of each sample, scaled to unit L2 norm (PAMS, arXiv 2011.04212).

    Args:
        feature: floating tensor (N, C, H, W), the input of the upsampler. The map does not depend on its scale.

    Returns:
        Tensor (N, H*W). An all-zero feature gives an all-zero map.

    Raises:
        QuantizationError: if ``feature`` is not four-dimensional.
    """
    if feature.ndim != 4:
        raise QuantizationError(f"a feature of shape {tuple(feature.shape)} has no attention map; give (N, C, H, W)")
    # Features of networks that scale to 255 reach hundreds, whose square float16 cannot hold.
    return F.normalize(computable(feature).square().mean(dim=1).flatten(1), dim=1, eps=1e-12)


def skt_loss(student_feature: torch.Tensor, teacher_feature: torch.Tensor) -> torch.Tensor:
    """Return the mean over N*H*W of the squared difference of the two attention maps (scalar).

    The mean over unit-norm maps makes the loss shrink as 1/(H*W): its weight belongs to a patch size. With images in
    [0, 255] the papers weigh it by 1000, with images in [0, 1] that is 1000 / 255 = 3.92.

    Raises:
        QuantizationError: if the two features differ in batch or spatial size.
    """
    student, teacher = attention_map(student_feature), attention_map(teacher_feature)
    if student.shape != teacher.shape or student_feature.shape[2:] != teacher_feature.shape[2:]:
        raise QuantizationError(
            f"student feature {tuple(student_feature.shape)} and teacher feature {tuple(teacher_feature.shape)} "
            "differ in batch or spatial size; take both at the upsampler's input of the same images"
        )
    return (student - teacher).square().mean()
