"""SKT, PAMS's structured knowledge transfer, as a distiller of NNI's compression API."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from nni.compression.base.setting import DistillatoinSetting
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.distillation.basic_distiller import TeacherModelBasedDistiller
from nni.compression.utils.evaluator import Evaluator
from torch import nn

from srq_nni.compression.presets import find_preset
from srq_nni.errors import OptionError, QuantizationError, did_you_mean
from srq_nni.functional import skt_loss
from srq_nni.quantization.targets import INPUT, INPUT_PREFIX, OUTPUT, OUTPUT_PREFIX, canonical_target

SKT_WEIGHT = 1000 / 255  # the papers' 1000 for images in [0, 255], here for [0, 1]


def skt_config_list(model: nn.Module, feature: str | None = None, weight: float = SKT_WEIGHT) -> list[dict[str, Any]]:
    """Return the config_list of ``SKTDistiller`` that compares the published feature, the input of the upsampler.

    Args:
        model: network with a preset, or any other with ``feature``.
        feature: module whose input is compared.
        weight: of the loss, for images in [0, 1].
    """
    name = find_preset(model).feature if feature is None else feature
    modules = dict(model.named_modules())
    if name not in modules:
        raise OptionError(
            f"feature: the network has no module '{name}'{did_you_mean(name, modules) or '; name its upsampler'}"
        )
    while isinstance(modules[name], nn.Sequential):  # a sequence has the input of its first module
        name += ".0"
    return [{"op_names": [name], "target_names": ["_input_0"], "lambda": float(weight), "apply_method": "mse"}]


class SKTDistiller(TeacherModelBasedDistiller):
    """Adds ``lambda * skt_loss(student, teacher)`` of each configured feature to the training loss.

    Fuse it with a quantizer: ``SKTDistiller.from_compressor(quantizer, skt_config_list(model), teacher_model=...,
    teacher_predict=...)``, then call its ``compress``; the calibration_config is the quantizer's.

    Args:
        model: the student.
        config_list: targets ``_input_0`` or ``_output_0`` of modules, as ``skt_config_list`` writes it; ``lambda`` is
            the weight of the loss, 1 if missing.
        evaluator: as of the quantizer.
        teacher_model: the float network; it is frozen here and put into eval mode.
        teacher_predict: ``teacher_predict(batch, teacher_model)`` runs it.
        origin_loss_lambda: weight of the loss of the loop.
        existed_wrappers: for ``from_compressor``.

    Raises:
        OptionError: names the entry and what it allows.
    """

    def __init__(
        self,
        model: nn.Module,
        config_list: Sequence[Mapping[str, Any]],
        evaluator: Evaluator,
        teacher_model: nn.Module,
        teacher_predict: Callable[[Any, nn.Module], Any],
        origin_loss_lambda: float = 1.0,
        existed_wrappers: Mapping[str, ModuleWrapper] | None = None,
    ) -> None:
        if model is teacher_model:
            raise OptionError("teacher_model: it is the student itself; give a float copy: copy.deepcopy(model)")
        _check_features(model, teacher_model, config_list)
        teacher_model.eval().requires_grad_(False)
        super().__init__(
            model,
            [{**entry, "lambda": _weight(entry, f"config_list entry {i}")} for i, entry in enumerate(config_list)],
            evaluator,
            teacher_model,
            teacher_predict,
            origin_loss_lambda,
            dict(existed_wrappers or {}),
        )

    def compute_distill_loss(self) -> torch.Tensor:
        """Return the weighted sum of the SKT losses of the last forward passes, and forget their features.

        Raises:
            OptionError: if a feature was not computed in the forward pass.
        """
        losses = []
        for name, spaces in self._target_spaces.items():
            for target, space in spaces.items():
                for link in space.link:
                    teacher = self._teacher_target_spaces[link][target]
                    if space.hidden_state is None or teacher.hidden_state is None:
                        silent = (
                            f"'{name}' of the student" if space.hidden_state is None else f"'{link}' of the teacher"
                        )
                        raise OptionError(f"config_list: {silent} did not run in the forward pass; name one that does")
                    losses.append(space.lambda_ * skt_loss(space.hidden_state, teacher.hidden_state))
                    teacher.clean()
                space.clean()
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        return total


def _weight(entry: Mapping[str, Any], where: str) -> float:
    given = entry.get("lambda", 1)
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < math.inf:
        raise OptionError(f"{where}: lambda: {given!r} is not allowed; give a weight of the loss from 0 on")
    return float(given)


def _check_target(module: nn.Module, target: Any, name: str, where: str) -> None:
    if not str(target).startswith((INPUT_PREFIX, OUTPUT_PREFIX)):
        raise OptionError(f"{where}: target {target!r} of '{name}' is no feature; give {INPUT} or {OUTPUT}")
    try:
        canonical_target(module, target, name)
    except QuantizationError as error:
        raise OptionError(f"{where}: {error}") from None


def _check_features(student: nn.Module, teacher: nn.Module, entries: Sequence[Mapping[str, Any]]) -> None:
    from nni.compression.base.config import select_modules_by_config

    names = [name for name, _ in teacher.named_modules()]
    for index, entry in enumerate(entries):
        where = f"config_list entry {index}"
        selected = select_modules_by_config(student, dict(entry))[0]
        if not selected:
            raise OptionError(f"{where}: it selects no module; name those whose features are compared")
        for name, module in selected.items():
            if isinstance(module, nn.Sequential):
                raise OptionError(f"{where}: '{name}' is a sequence; name its first module, '{name}.0', with _input_0")
            for target in entry.get("target_names", []):
                _check_target(module, target, name, where)
            setting = {"lambda": None, "link": None, "apply_method": None}
            DistillatoinSetting.register(type(module).__name__, {"_input_": dict(setting), "_output_": dict(setting)})
            link = entry.get("link", name)
            for other in [link] if isinstance(link, str) else link:
                if other != "auto" and other not in names:
                    near = did_you_mean(other, names) or "; name its counterpart"
                    raise OptionError(f"{where}: link: the teacher has no module '{other}'{near}")
