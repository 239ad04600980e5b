"""The learning rates of a recipe, for a run of another length than the one it was made for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any


def in_proportion(train: Mapping[str, Any], share: float) -> dict[str, Any]:
    """Return a copy of ``train`` whose milestones, periods and warm-up are ``share`` times as long.

    BasicSR takes keys out of the blocks that it reads, so nothing of the copy is shared with ``train``.
    """
    scaled = copy.deepcopy(dict(train))
    scheduler = scaled["scheduler"]
    for key in ("milestones", "periods"):
        if key in scheduler:
            scheduler[key] = [max(round(share * iteration), 1) for iteration in scheduler[key]]
    if "warmup_iter" in scaled:
        scaled["warmup_iter"] = max(round(share * scaled["warmup_iter"]), 1)
    return scaled
