"""Every error that srq_nni raises on purpose, and the "did you mean" that goes with it.

A message is one sentence that says what was given, what is allowed and what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SRQError(Exception):
    """Base class of all errors that the user of srq_nni can mend; the command line exits with status 2."""


class OptionError(SRQError, ValueError):
    """A key, a value or a combination of them in a YAML file or on the command line is not allowed."""


class QuantizationError(SRQError, ValueError):
    """A quantizer was given a bit width, a bound, a tensor or a place it cannot work with."""


class CheckpointError(SRQError, RuntimeError):
    """A checkpoint is missing, unreadable, or does not fit the network it is meant for."""


class DataError(SRQError, RuntimeError):
    """An image or a folder of images is missing, empty or broken."""


class ExportError(SRQError, RuntimeError):
    """A network or a layer cannot be written as integers for the engine that was asked for."""


class WriteError(SRQError, OSError):
    """A file or a folder cannot be written: the disk is full, read-only or belongs to somebody else."""


class Stopped(KeyboardInterrupt):
    """The user, or the machine with SIGTERM, ended a run that can go on; the message says how.

    Attributes:
        status: exit status of the command, 128 + the signal's number.
    """

    def __init__(self, message: str, status: int = 130) -> None:
        super().__init__(message)
        self.status = status


def did_you_mean(given: object, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest allowed spelling, or an empty string."""
    found = nearest(given, allowed)
    return "" if found is None else f"; did you mean '{found}'?"


def nearest(given: object, allowed: Iterable[str]) -> str | None:
    """Return the allowed spelling that was probably meant, or None."""
    word, names = str(given).lower(), [str(name) for name in allowed]
    near = get_close_matches(str(given), names, n=5, cutoff=0.5)
    same = [name for name in names if name.lower() == word]  # but for capitals
    swapped = [name for name in near if sorted(name.lower()) == sorted(word)]  # EDRS is EDSR rather than EDVR
    longer = sorted((name for name in names if len(word) > 2 and word in name.lower()), key=len)  # psnr, of a metric
    return next(iter(same or swapped or near or longer), None)


def listing(names: Iterable[object], limit: int = 8) -> str:
    """Return names as ``a, b, c``; beyond ``limit`` the rest is counted, not shown."""
    shown = [str(name) for name in names]
    extra = len(shown) - limit
    return ", ".join(shown[:limit]) + (f" and {extra} more" if extra > 0 else "")
