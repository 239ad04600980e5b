"""The checks of a run's teacher: its network, its weights, and whether it answers in the student's shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from srq_nni import checkpoint
from srq_nni.archs.aliases_arch import is_alias, two_blocks
from srq_nni.archs.quantized_arch import build_float
from srq_nni.compression.options import QuantizationOptions
from srq_nni.errors import OptionError
from srq_nni.models.feature import InputRecorder
from srq_nni.models.rules import need
from srq_nni.models.teacher import TEACHER_LOSSES, features_of, teacher_block
from srq_nni.speedup.sources import default_sample

FAILURES = (AssertionError, LookupError, RuntimeError, TypeError, ValueError)  # of a forward pass
SIDE = 16  # pixels of the image that both are shown; windows of transformers have 4, 8 or 16


def check_teacher(opt: Mapping[str, Any], options: QuantizationOptions) -> None:
    """Check the teacher of a training run, if a loss asks for one.

    Args:
        opt: all options of the run.
        options: its ``quantization`` block.

    Raises:
        SRQError: one sentence that names the key.
    """
    compared = [key for key in TEACHER_LOSSES if opt["train"].get(key)]
    if not compared:
        return
    path, own = opt["path"], opt.get("network_t")
    name = "network_t" if own else "network_g"
    if not path.get("pretrain_network_t"):
        raise OptionError(
            f"train: {compared[0]} compares with a teacher, but path: pretrain_network_t is missing; "
            f"give the float checkpoint of {name} there, or delete {' and '.join(compared)}"
        )
    if own:
        need(name, own, ["type"])
        if is_alias(own):
            base = two_blocks(own)[0]
            raise OptionError(f"{name}: {own['type']} has quantizers; give the float network, type: {base['type']}")
    teacher = build_float(teacher_block(opt), name)
    names = features_of(opt, options) if "skt_opt" in compared else None
    feature = None if names is None else InputRecorder(teacher, names[1])
    key = path.get("param_key_t", "params")
    checkpoint.load_weights(teacher, path["pretrain_network_t"], param_key=key, block=name)
    if own:
        student = build_float(opt["network_g"])
        recorders = None if feature is None or names is None else (InputRecorder(student, names[0]), feature)
        _compare_shapes(student, teacher, recorders)


@torch.no_grad()
def _compare_shapes(
    student: nn.Module, teacher: nn.Module, features: tuple[InputRecorder, InputRecorder] | None
) -> None:
    """Show both an image, and compare the sizes of what they answer and of what SKT compares."""
    image = default_sample(student, (SIDE, SIDE))
    try:
        expected = tuple(student.eval()(image).shape)
    except FAILURES:  # a network of larger images meets its teacher in the first step
        return
    try:
        given = tuple(teacher.eval()(image).shape)
    except FAILURES as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise OptionError(
            f"network_t: it does not run on an image of {SIDE}x{SIDE} that network_g takes ({reason}); give a teacher "
            "for the same images"
        ) from None
    if given != expected:
        raise OptionError(
            f"network_t: it makes {given} of an image from which network_g makes {expected}; give a teacher of the "
            "same scale and channels"
        )
    if features is not None:
        own, other = (tuple(recorder.take().shape[2:]) for recorder in features)
        if own != other:
            raise OptionError(
                f"train: skt_opt compares features of one size, and that of network_t is {other} where that of "
                f"network_g is {own}; delete it, or give a teacher that enlarges at the same place"
            )
