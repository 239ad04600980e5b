"""The knapsack: optimal against brute force, never beyond the limit."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srq_nni.search.choose import choose

numbers = st.floats(0, 10, allow_nan=False)
tables = st.integers(1, 4).flatmap(
    lambda units: st.tuples(*(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=units, max_size=units),) * 2)
)


def brute_force(objective: np.ndarray, spent: np.ndarray, limit: float) -> float | None:
    units = np.arange(len(spent))
    found = [
        objective[units, list(choice)].sum()
        for choice in product(range(spent.shape[1]), repeat=len(spent))
        if spent[units, list(choice)].sum() <= limit
    ]
    return min(found) if found else None


@given(tables, st.floats(0, 1))
def test_it_keeps_the_limit_and_is_near_the_optimum(given_tables: tuple[list, list], share: float) -> None:  # type: ignore[type-arg]
    objective, spent = (np.array(table) for table in given_tables)
    limit = spent.min(1).sum() + share * (spent.max(1).sum() - spent.min(1).sum()) + 1e-9
    choice = choose(objective, spent, limit, bins=2000)
    assert choice is not None
    units = np.arange(len(spent))
    assert spent[units, choice].sum() <= limit
    tighter = limit - (limit - spent.min(1).sum()) * (len(spent) + 1) / 2000  # what rounding may hide
    best = brute_force(objective, spent, max(tighter, spent.min(1).sum()))
    assert best is not None and objective[units, choice].sum() <= best + 1e-9


def test_an_impossible_limit_is_none() -> None:
    assert choose(np.ones((2, 2)), np.ones((2, 2)), 1.5) is None


def test_equal_spending_takes_the_best_of_each() -> None:
    objective = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]])
    assert list(choose(objective, np.ones((2, 3)), 2.0)) == [1, 0]  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [45.0, 60.0, 75.0])
def test_whole_numbers_are_solved_exactly(limit: float) -> None:
    random = np.random.default_rng(0)
    spent, objective = random.integers(1, 20, (6, 4)).astype(float), random.random((6, 4))
    choice = choose(objective, spent, limit)
    assert choice is not None
    assert objective[np.arange(6), choice].sum() == pytest.approx(brute_force(objective, spent, limit))
