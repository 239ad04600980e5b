"""Rows that differ in nothing but numbers in their names, as one: ``body.0..15.conv1``."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from srq_nni.summary.rows import Convolution

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a whole part of a module path


@dataclass(frozen=True)
class Group:
    """Rows that are alike.

    Attributes:
        name: their names in one, such as ``body.0..15.conv1``.
        source: where their inputs come from, in the same spelling.
        rows: in the order of the network.
    """

    name: str
    source: str
    rows: tuple[Convolution, ...]


def grouped(rows: Sequence[Convolution]) -> list[Group]:
    """Return ``rows`` in groups that are alike in everything but numbers in their names, in the order of the network.

    A group's name says which rows it holds, and only those: numbers that form no full grid make several groups.
    """
    alike: dict[Hashable, list[Convolution]] = {}
    for row in rows:
        alike.setdefault((_skeleton(row.name), *_looks(row)), []).append(row)
    position = {row.name: index for index, row in enumerate(rows)}
    groups = [group for members in alike.values() for group in _grids(members)]
    return sorted(groups, key=lambda group: position[group.rows[0].name])


def ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers as ``3``, ``0..15`` or ``{0,2,5..7}``.

    >>> ranges([0, 2, 5, 6, 7])
    '{0,2,5..7}'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs]
    return parts[0] if len(parts) == 1 and "," not in parts[0] else "{" + ",".join(parts) + "}"


def _looks(row: Convolution) -> tuple[Hashable, ...]:
    engines = tuple((engine, verdict) for engine, verdict in row.engines.items())
    bits = (row.weight_bits, row.activation_bits)
    return (*bits, _skeleton(row.source), row.gate, row.weights, row.biases, row.macs, engines)


def _skeleton(name: str) -> str:
    return _NUMBER.sub("*", name)


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in _NUMBER.findall(name))


def _grids(rows: Sequence[Convolution]) -> list[Group]:
    """Return one group if the numbers in the names are a full grid, otherwise one for each value of all but one."""
    indices = [_numbers(row.name) for row in rows]
    axes = [sorted(set(axis)) for axis in zip(*indices, strict=True)]
    size = 1
    for axis in axes:
        size *= len(axis)
    if size == len(rows):
        return [Group(_spelt(rows[0].name, axes), _spelt(rows[0].source, axes), tuple(rows))]
    longest = max(range(len(axes)), key=lambda axis: len(axes[axis]))
    lines: dict[tuple[int, ...], list[Convolution]] = {}
    for row, index in zip(rows, indices, strict=True):
        lines.setdefault(index[:longest] + index[longest + 1 :], []).append(row)
    return [group for line in lines.values() for group in _grids(line)]


def _spelt(name: str, axes: Sequence[Sequence[int]]) -> str:
    """Return ``name`` with each number replaced by the range of its axis; a source may have fewer numbers."""
    parts = iter(axes)
    return _NUMBER.sub(lambda number: ranges(next(parts, [int(number[0])])), name)
