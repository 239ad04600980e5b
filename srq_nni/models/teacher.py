"""What a float teacher adds to the loss of a training step: SKT on a feature, distillation of the output, or both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from basicsr.losses import build_loss
from torch import nn

from srq_nni.models.feature import InputRecorder

TEACHER_LOSSES = ("skt_opt", "distill_opt")  # keys of the train block that need a teacher


class TeacherLosses:
    """Runs the teacher once a step, up to the feature if nobody reads its output.

    Args:
        student: network that trains.
        teacher: float network of the same architecture, frozen, in eval mode.
        train: the ``train`` block with at least one of ``TEACHER_LOSSES``.
        feature: module whose input SKT compares, if it does.
        device: of the losses.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        train: Mapping[str, Any],
        feature: str | None,
        device: torch.device,
    ) -> None:
        skt, distill = (build_loss(train[key]).to(device) if train.get(key) else None for key in TEACHER_LOSSES)
        self._teacher, self._skt, self._distill = teacher, skt, distill
        if skt is not None:
            assert feature is not None
            self._features = InputRecorder(student, feature), InputRecorder(teacher, feature, ends_pass=distill is None)

    def after(self, args: tuple[Any, ...], output: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the losses (0-d each) of the student's forward pass that just gave ``output`` for ``args``."""
        losses: dict[str, torch.Tensor] = {}
        if self._skt is None:
            with torch.no_grad():
                target = self._teacher(*args)
        else:
            student, teacher = self._features
            target = teacher.run(*args)
            losses["l_skt"] = self._skt(student.take(), teacher.take())
        if self._distill is not None:
            losses["l_distill"] = self._distill(output.float(), target.float())  # bfloat16 with train: amp
        return losses
