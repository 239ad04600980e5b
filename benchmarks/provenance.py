"""What stands beside every measured number: date, commit, machine class, versions, threads of torch."""

from __future__ import annotations

import torch

from srq_nni.speedup.machine import this_machine


def provenance() -> str:
    """Return one line."""
    return f"{this_machine()}, {torch.get_num_threads()} threads of torch"
