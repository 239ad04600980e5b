"""Progress bars: with the time that is left, on the terminal only, and gone when the work is done."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Generic, TextIO, TypeVar

from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from tqdm import tqdm

T = TypeVar("T")


def bar(what: str, total: int | None = None, unit: str = "it") -> tqdm:
    """Return a bar to ``update`` and ``close``; it is silent where standard error is no terminal.

    Args:
        what: the work, such as ``Calibrating``.
        total: number of steps, with which the bar can say how long it still takes.
        unit: what a step is.
    """
    sized = {"dynamic_ncols": True} if _knows_its_size(sys.stderr) else {"ncols": 80, "nrows": 24}
    return tqdm(total=total, desc=what, unit=unit, disable=None, leave=False, **sized)


def _knows_its_size(terminal: TextIO) -> bool:
    """Whether a terminal says how many columns and lines it has; those of containers often say 0."""
    try:
        return min(os.get_terminal_size(terminal.fileno())) > 0
    except (OSError, ValueError):
        return False


class Reported:
    """The bar of work that reports how far it is: it comes with the first report and goes with the last.

    Call it with (steps done, steps in all), from wherever the work begins or goes on. In a ``with`` statement it also
    goes when the work fails.

    Args:
        what, unit: as for ``bar``.
    """

    def __init__(self, what: str, unit: str = "it") -> None:
        self._what, self._unit = what, unit
        self._bar: tqdm | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None and done < total:
            self._bar = bar(self._what, total, self._unit)
        if self._bar is not None:
            if self._bar.total != total:  # other work of the kind, as the one before failed
                self._bar.reset(total)
            self._bar.update(done - self._bar.n)
            if done >= total:
                self.close()

    def __enter__(self) -> Reported:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def layers_run(model: nn.Module, passes: int, what: str) -> Iterator[None]:
    """Show how far the forward passes in this block have come, by convolutions and linear layers.

    Args:
        model: network that runs, or copies of it.
        passes: how often it does.
        what: as for ``bar``.
    """
    kinds = (nn.Conv2d, nn.Linear)
    total = passes * sum(isinstance(module, kinds) for module in model.modules())
    with bar(what, total, "layer") as progress:
        if progress.disable:
            yield
            return

        def count(module: nn.Module, args: object, output: object) -> None:
            progress.update(isinstance(module, kinds) and progress.n < total)

        handle = register_module_forward_hook(count)  # of all modules: the copies are made inside
        try:
            yield
        finally:
            handle.remove()


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
