"""The one limit of a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from srq_nni.errors import OptionError
from srq_nni.summary.rows import Summary

Kind = Literal["loss", "size", "bops"]
UNITS = {"loss": "dB", "size": "MB", "bops": "T"}


@dataclass(frozen=True)
class Budget:
    """What an assignment of bits may cost.

    Attributes:
        kind: ``loss`` (dB of PSNR on Y against the float network), ``size`` (MB of the parameters, 10^6 bytes, see
            ``Summary.file_bytes``) or ``bops`` (10^12 for an output of 1280x720).
        limit: the most that is allowed.
        saved: what a limit of loss makes as small as it can: ``bops`` or ``size``; else what is limited.
    """

    kind: Kind
    limit: float
    saved: Literal["size", "bops"] = "bops"

    def __post_init__(self) -> None:
        if not 0 < self.limit < float("inf"):
            raise OptionError(f"--max-{self.kind} {self.limit:g} is not allowed; give a number above 0")

    @property
    def cost_kind(self) -> str:
        """What the cost of an assignment is counted in."""
        return self.saved if self.kind == "loss" else self.kind

    def cost(self, summary: Summary) -> float:
        """Return the cost of a network in MB or in 10^12 BOPs."""
        return summary.file_bytes / 1e6 if self.cost_kind == "size" else summary.bops / 1e12

    def __str__(self) -> str:
        return f"at most {self.limit:g} {UNITS[self.kind]}" + (" of loss" if self.kind == "loss" else "")
