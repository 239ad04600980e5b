"""BasicSR's training loop without its pipeline, for tests that look at a model between two steps."""

from __future__ import annotations

import copy
from typing import Any

import torch

DDTB = {"quantizer": "ddtb", "bits": 2, "calibration_iters": 2, "static_iters": 2, "dynamic_ratio": 0.5}


def train(model: Any, batches: list[dict[str, torch.Tensor]], first: int, last: int) -> list[dict[str, float]]:
    """Run BasicSR's loop over iterations ``first`` to ``last`` and return what it logs."""
    logs = []
    for iteration in range(first, last + 1):
        model.update_learning_rate(iteration, warmup_iter=-1)
        model.feed_data(batches[iteration % len(batches)])
        model.optimize_parameters(iteration)
        logs.append(dict(model.get_current_log()))
    return logs


def state(model: Any) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.get_bare_model(model.net_g).state_dict())


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())
