"""Plain text tables for reports."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return ``rows`` below ``head`` in columns of equal width, two spaces apart, without trailing spaces.

    >>> print(text_table(("layer", "bits"), [("body.0", "4")]))
    layer   bits
    body.0  4
    """
    lines = [tuple(head), *map(tuple, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
