"""Several processes that have to stop at the same iteration, whichever of them got a signal."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from torch import distributed

PATIENCE = timedelta(days=7)  # the first process validates while the others wait for its answer


class Agreement:
    """The greatest signal that any process got, known to all of them one call later, so that none waits for another.

    Every process makes it, and calls its methods, at the same points. It goes over gloo and the CPU, so that no step
    waits for a GPU.
    """

    def __init__(self) -> None:
        self._group: Any = distributed.new_group(backend="gloo", timeout=PATIENCE)
        self._greatest = torch.zeros(1, dtype=torch.int64)
        self._pending: Any = None

    def reached(self, number: int) -> int:
        """Tell the others which signal this process got, or 0; return the greatest of the call before."""
        greatest = self._answer()
        self._greatest = torch.tensor([number])
        self._pending = distributed.all_reduce(self._greatest, distributed.ReduceOp.MAX, self._group, async_op=True)
        return greatest

    def meet(self) -> None:
        """Wait for the others."""
        self._answer()
        distributed.barrier(self._group)

    def _answer(self) -> int:
        if self._pending is None:
            return 0
        self._pending.wait()
        self._pending = None
        return int(self._greatest.item())
