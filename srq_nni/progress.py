"""Progress bars: with the time that is left, on the terminal only, and gone when the work is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Generic, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def bar(what: str, total: int | None = None, unit: str = "it") -> tqdm:
    """Return a bar to ``update`` and ``close``; it is silent where standard error is no terminal.

    Args:
        what: the work, such as ``Calibrating``.
        total: number of steps, with which the bar can say how long it still takes.
        unit: what a step is.
    """
    return tqdm(total=total, desc=what, unit=unit, disable=None, leave=False, dynamic_ncols=True)


class Calibration:
    """The bar of the first phase of a training, which comes with its first iteration and goes with its last.

    Args:
        iterations: length of the phase.
    """

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations
        self._bar: tqdm | None = None

    def reached(self, iteration: int) -> None:
        """Show that so many iterations of the training, the calibration and what follows, have ended."""
        if self._bar is None and iteration < self.iterations:
            self._bar = bar("Calibrating", self.iterations, "iteration")
        if self._bar is not None:
            self._bar.update(iteration - self._bar.n)
            if iteration >= self.iterations:
                self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Tracked(Generic[T]):
    """An iterable with a bar; its other attributes (a loader's ``dataset``) are those of the iterable."""

    def __init__(self, items: Iterable[T], what: str, unit: str = "it") -> None:
        self._items, self._what, self._unit = items, what, unit

    def __iter__(self) -> Iterator[T]:
        total = len(self._items) if isinstance(self._items, Sized) else None
        with bar(self._what, total, self._unit) as progress:
            for item in self._items:
                yield item
                progress.update()

    def __len__(self) -> int:
        if not isinstance(self._items, Sized):
            raise TypeError(f"{type(self._items).__name__} has no length")
        return len(self._items)

    def __getattr__(self, name: str) -> object:
        return getattr(self._items, name)


def track(items: Iterable[T], what: str, unit: str = "it") -> Tracked[T]:
    """Return ``items`` with a bar that moves while they are iterated."""
    return Tracked(items, what, unit)
