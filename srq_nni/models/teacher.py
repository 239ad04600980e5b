"""What a float teacher adds to the loss of a training step: SKT on a feature, distillation of the output, or both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from basicsr.losses import build_loss
from torch import nn

from srq_nni.compression.options import QuantizationOptions
from srq_nni.compression.presets import PRESETS, find_preset
from srq_nni.errors import OptionError
from srq_nni.models.feature import InputRecorder
from srq_nni.models.orientation import Orientation

TEACHER_LOSSES = ("skt_opt", "distill_opt")  # keys of the train block that need a teacher


def unused_settings(opt: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each setting of a teacher that no loss of the options uses."""
    train = opt["train"]
    skt, distill = (bool(train.get(key)) for key in TEACHER_LOSSES)
    unused = {
        "network_t": (opt.get("network_t"), skt or distill, "skt_opt or distill_opt"),
        "path: pretrain_network_t": (opt["path"].get("pretrain_network_t"), skt or distill, "skt_opt or distill_opt"),
        "train: distill_flips": ("distill_flips" in train, distill, "distill_opt"),
        "quantization: feature": (opt["quantization"].get("feature"), skt, "skt_opt"),
    }
    return [
        f"{key}: nothing reads it without train: {losses}; add that, or delete the key"
        for key, (given, used, losses) in unused.items()
        if given and not used
    ]


def teacher_block(opt: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the block of the teacher's network: ``network_t``, or ``network_g`` if missing."""
    return opt.get("network_t") or opt["network_g"]


def features_of(opt: Mapping[str, Any], options: QuantizationOptions) -> tuple[str, str]:
    """Return the modules of student and teacher whose inputs SKT compares.

    ``quantization: feature`` names that of the student, and of a teacher of the same type; another is asked its preset.

    Raises:
        OptionError: if a preset is needed and missing.
    """
    student, teacher = opt["network_g"]["type"], teacher_block(opt)["type"]
    own = find_preset(student).feature if options.feature is None else options.feature
    known = dict.fromkeys([student, *PRESETS])
    if teacher not in known:
        raise OptionError(
            f"train: skt_opt compares features, and which one that is in network_t '{teacher}' is not known; "
            f"delete it, or give a teacher of one of the types {', '.join(known)}"
        )
    return own, own if teacher == student else find_preset(teacher).feature


class TeacherLosses:
    """Runs the teacher once a step, up to the feature if nobody reads its output.

    With ``train: distill_flips`` it sees its input in an orientation drawn for the step, and what it gives is turned
    back. No network treats all orientations quite alike; over the steps the student is drawn to the middle of them,
    with an L2 loss to their mean, which is EDSR's self-ensemble (arXiv 1707.02921).

    Args:
        student: network that trains.
        teacher: float network of the same scale, frozen, in eval mode.
        train: the ``train`` block with at least one of ``TEACHER_LOSSES``.
        features: modules of student and teacher whose inputs SKT compares, if it does.
        device: of the losses.
        seed: of the orientations.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        train: Mapping[str, Any],
        features: tuple[str, str] | None,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        skt, distill = (build_loss(train[key]).to(device) if train.get(key) else None for key in TEACHER_LOSSES)
        self._teacher, self._skt, self._distill = teacher, skt, distill
        self._seed, self._flips = seed, distill is not None and train.get("distill_flips", True)
        if skt is not None:
            assert features is not None
            of_student, of_teacher = features
            ends = distill is None
            self._features = InputRecorder(student, of_student), InputRecorder(teacher, of_teacher, ends_pass=ends)

    def after(self, images: torch.Tensor, output: torch.Tensor, iteration: int) -> dict[str, torch.Tensor]:
        """Return the losses (0-d each) of the student's forward pass that just gave ``output`` for ``images``.

        Args:
            images: (N, C, H, W).
            output: (N, C, H s, W s).
            iteration: from 1; the orientation of the teacher's input follows from it.
        """
        orientation = Orientation.drawn(self._seed, iteration) if self._flips else Orientation()
        turned = orientation.turn(images)
        losses: dict[str, torch.Tensor] = {}
        if self._skt is None:
            with torch.no_grad():
                target = self._teacher(turned)
        else:
            student, teacher = self._features
            target = teacher.run(turned)
            losses["l_skt"] = self._skt(student.take(), orientation.turn_back(teacher.take()))
        if self._distill is not None:
            given = orientation.turn_back(target)
            losses["l_distill"] = self._distill(output.float(), given.float())  # bfloat16 with train: amp
        return losses
