"""One bit width for each unit under a limit: the multiple-choice knapsack, solved by dynamic programming.

The loss of an assignment is taken as the sum of what each unit loses alone, which measurement then checks. Amounts are
rounded up to a grid, so a solution never exceeds the limit; what the rounding leaves is spent greedily.
"""

from __future__ import annotations

import numpy as np

BINS = 2000


def choose(objective: np.ndarray, spent: np.ndarray, limit: float, bins: int = BINS) -> np.ndarray | None:
    """Return the choice of each unit with the least sum of ``objective`` whose ``spent`` sums to at most ``limit``.

    Args:
        objective: (units, choices).
        spent: (units, choices), not negative.
        limit: of the sum.
        bins: fineness of the grid.

    Returns:
        (units,) indices of choices, or None if even the least spending exceeds the limit.
    """
    least = spent.min(1)
    room = limit - least.sum()
    if room < 0:
        return None
    step = room / bins
    with np.errstate(divide="ignore", invalid="ignore"):
        extra = (
            np.ceil((spent - least[:, None]) / step - 1e-9) if step > 0 else np.where(spent > least[:, None], np.inf, 0)
        )
    extra = np.where(np.isfinite(extra), np.minimum(extra, bins + 1), bins + 1).astype(int)
    best = np.zeros(bins + 1)
    taken = np.zeros((len(spent), bins + 1), dtype=np.int8)
    for unit in range(len(spent)):
        total = np.full(bins + 1, np.inf)
        for choice, weight in enumerate(extra[unit]):
            if weight > bins:
                continue
            moved = np.full(bins + 1, np.inf)
            moved[weight:] = best[: bins + 1 - weight] + objective[unit, choice]
            better = moved < total
            total[better] = moved[better]
            taken[unit, better] = choice
        best = total
    chosen = np.zeros(len(spent), dtype=int)
    left = int(best.argmin())
    for unit in reversed(range(len(spent))):
        chosen[unit] = taken[unit, left]
        left -= extra[unit, chosen[unit]]
    return _spend_the_rest(objective, spent, limit, chosen)


def _spend_the_rest(objective: np.ndarray, spent: np.ndarray, limit: float, chosen: np.ndarray) -> np.ndarray:
    """Change single units while that lowers the objective within the limit, the greatest gain first."""
    units = np.arange(len(spent))
    while True:
        total = spent[units, chosen].sum()
        gain = objective[units, chosen][:, None] - objective
        gain[total - spent[units, chosen][:, None] + spent > limit] = -np.inf
        unit, choice = np.unravel_index(int(gain.argmax()), gain.shape)
        if gain[unit, choice] <= 1e-12 * max(abs(objective).max(), 1e-30):
            return chosen
        chosen = chosen.copy()
        chosen[unit] = choice
