"""Cutting an image into windows that overlap, so that what is kept of each does not see where it was cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A part of an image and what is kept of its result, in pixels of the image.

    Attributes:
        rows, columns: what the network sees.
        kept_rows, kept_columns: what is kept of it; the kept parts of all windows cover the image once.
    """

    rows: slice
    columns: slice
    kept_rows: slice
    kept_columns: slice


def windows(height: int, width: int, tile: int | None, overlap: int) -> Iterator[Window]:
    """Yield the windows of an image from top left to bottom right; all have the same shape.

    Kept pixels are ``overlap`` or more away from every edge of their window that is not an edge of the image. Windows
    at the far edges are moved inwards rather than cut, since engines prepare themselves for each new shape.

    Args:
        height, width: of the image.
        tile: rows and columns that are kept of each window; None takes the whole image as one.
        overlap: rows and columns around them that the network sees as well.
    """
    for rows, kept_rows in _spans(height, tile, overlap):
        for columns, kept_columns in _spans(width, tile, overlap):
            yield Window(rows, columns, kept_rows, kept_columns)


def count_windows(height: int, width: int, tile: int | None, overlap: int) -> int:
    """Return how many windows an image has."""
    return len(list(_spans(height, tile, overlap))) * len(list(_spans(width, tile, overlap)))


def _spans(length: int, tile: int | None, overlap: int) -> Iterator[tuple[slice, slice]]:
    seen = length if tile is None else min(length, tile + 2 * overlap)
    start = 0  # of what is not yet covered
    while start < length:
        first = min(max(start - overlap, 0), length - seen)
        last = first + seen
        end = length if last == length else last - overlap
        yield slice(first, last), slice(start, end)
        start = end
