"""The Pareto plot: its front in numbers, and what a reader sees on the picture."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from srq_nni.search import SearchResult
from srq_nni.search.plot import pareto_front, pareto_plot

COLOURS = {"measured": (31, 119, 180), "equal bits": (255, 127, 14), "chosen": (214, 39, 40), "limit": (128, 128, 128)}


def test_the_front_is_what_no_other_point_beats() -> None:
    points = [(3.0, 0.2), (1.0, 0.9), (2.0, 0.9), (2.0, 0.5), (4.0, 0.2), (5.0, 0.1)]
    assert pareto_front(points) == [(1.0, 0.9), (2.0, 0.5), (3.0, 0.2), (5.0, 0.1)]


def test_the_picture_shows_points_front_choice_and_limit(within_loss: SearchResult) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(pareto_plot(within_loss))).convert("RGB")).astype(int)
    assert pixels.shape == (540, 840, 3)
    for name, colour in COLOURS.items():
        assert (np.abs(pixels - colour).max(2) <= 2).sum() > 20, name
    front = pareto_front([(within_loss.budget.cost(point.summary), point.loss) for point in within_loss.tried])
    assert len(front) > 3
