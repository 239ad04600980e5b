"""Parameter groups: the network, the bounds with a learning rate of their own, and DDTB's gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nni.compression.utils.evaluator import Evaluator
from torch import nn
from torch.optim import Optimizer

from srq_nni.compression.bounds import BOUNDS_LEARNING_RATE
from srq_nni.compression.clock import GATE_GROUP
from srq_nni.compression.evaluator import LoopEvaluator
from srq_nni.compression.phases import ddtb_quantizers, gate_parameters
from srq_nni.errors import QuantizationError
from srq_nni.quantization.layers import bounds_of


def parameter_groups(
    model: nn.Module, lr: float, bounds_lr: float = BOUNDS_LEARNING_RATE, **settings: Any
) -> list[dict[str, Any]]:
    """Return parameter groups for a new optimizer: the network, the bounds, and with DDTB the gates.

    The group of the gates is there before the gates are, so that a stored optimizer fits in any phase.

    Args:
        model: network with quantizers.
        lr: learning rate of the network and the gates.
        bounds_lr: of the bounds.
        settings: further settings of the network's and the gates' group.
    """
    bounds, gates = bounds_of(model), gate_parameters(model)
    others = {id(parameter) for parameter in (*bounds, *gates)}
    network = [p for p in model.parameters() if p.requires_grad and id(p) not in others]
    groups = [{"params": network, "lr": lr, **settings}, {"params": bounds, "lr": bounds_lr, "weight_decay": 0.0}]
    if ddtb_quantizers(model):
        groups.append({"params": gates, "lr": lr, "name": GATE_GROUP, **settings})
    return groups


def add_groups(optimizer: Optimizer, quantizers: nn.Module, bounds_lr: float) -> None:
    """Put the bounds of ``quantizers``, and DDTB's gates, into groups of their own.

    An optimizer over ``model.parameters()`` of a wrapped network holds the bounds among the weights; they are taken out
    there. A group that holds nothing but bounds was made for them and stays.
    """
    bounds = {id(bound): bound for bound in bounds_of(quantizers)}
    like_network = {key: value for key, value in optimizer.param_groups[0].items() if key not in ("params", "name")}
    for group in optimizer.param_groups:
        others = [parameter for parameter in group["params"] if id(parameter) not in bounds]
        if others:
            group["params"] = others
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [bound for key, bound in bounds.items() if key not in held]
    if missing:
        optimizer.add_param_group({"params": missing, "lr": bounds_lr, "weight_decay": 0.0})
    if ddtb_quantizers(quantizers) and not any(group.get("name") == GATE_GROUP for group in optimizer.param_groups):
        gates = [gate for gate in gate_parameters(quantizers) if id(gate) not in held]
        optimizer.add_param_group({**like_network, "params": gates, "name": GATE_GROUP})


def add_groups_when_built(evaluator: Evaluator, add: Callable[[Optimizer], None]) -> None:
    """Let an evaluator call ``add`` with its first optimizer as soon as it exists, before any scheduler is built.

    Raises:
        QuantizationError: if the evaluator is of a kind that builds its optimizer where nobody can reach it.
    """
    if isinstance(evaluator, LoopEvaluator):
        evaluator.when_watched(add)
        return
    helpers = getattr(evaluator, "_optimizer_helpers", None)
    if not helpers:
        raise QuantizationError(
            f"evaluator: {type(evaluator).__name__} gives the bounds no learning rate of their own; "
            "give a TorchEvaluator, a LightningEvaluator or a LoopEvaluator"
        )
    helpers[0] = _HelperWithGroups(helpers[0], add)


class _HelperWithGroups:
    """NNI's recipe of an optimizer, followed by ``add``."""

    def __init__(self, helper: Any, add: Callable[[Optimizer], None]) -> None:
        self._helper, self._add = helper, add

    def call(self, model: nn.Module, names: dict[str, str] | None) -> Optimizer:
        optimizer: Optimizer = self._helper.call(model, names)
        self._add(optimizer)
        return optimizer
