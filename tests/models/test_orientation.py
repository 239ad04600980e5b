"""The eight orientations: all different, each undone, drawn evenly and from seed and iteration alone."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from srq_nni.models.orientation import Orientation

ALL = [Orientation(*parts) for parts in itertools.product((False, True), repeat=3)]
IMAGES = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)


def test_by_hand() -> None:
    square = torch.tensor([[1, 2], [3, 4]]).reshape(1, 1, 2, 2)
    turned = [orientation.turn(square).flatten().tolist() for orientation in ALL]
    assert turned == [
        [1, 2, 3, 4],
        [2, 1, 4, 3],
        [3, 4, 1, 2],
        [4, 3, 2, 1],
        [1, 3, 2, 4],
        [3, 1, 4, 2],
        [2, 4, 1, 3],
        [4, 2, 3, 1],
    ]


@pytest.mark.parametrize("orientation", ALL)
def test_turning_back_undoes_it_at_any_scale(orientation: Orientation) -> None:
    turned = orientation.turn(IMAGES)
    assert turned.shape[2:] == ((5, 4) if orientation.transposed else (4, 5))
    assert torch.equal(orientation.turn_back(turned), IMAGES)
    enlarged = IMAGES.repeat_interleave(3, -1).repeat_interleave(3, -2)
    assert torch.equal(orientation.turn_back(turned.repeat_interleave(3, -1).repeat_interleave(3, -2)), enlarged)


def test_each_is_drawn_and_a_seed_draws_its_own() -> None:
    drawn = {seed: [Orientation.drawn(seed, iteration) for iteration in range(1, 801)] for seed in (1, 2)}
    for counts in map(Counter, drawn.values()):
        assert set(counts) == set(ALL) and min(counts.values()) > 70
    assert drawn[1] == [Orientation.drawn(1, iteration) for iteration in range(1, 801)] != drawn[2]
