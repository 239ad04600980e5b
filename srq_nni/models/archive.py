"""Where an earlier experiment or result goes when a new one takes its name.

BasicSR names the archive after the second; two that go within one second end the later run with an error.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path


def install() -> None:
    """Let BasicSR's pipelines archive in this way."""
    import basicsr.train
    from basicsr.utils import misc

    misc.mkdir_and_rename = basicsr.train.mkdir_and_rename = make_folder


def make_folder(path: str) -> None:
    """Make an empty folder; what has its name already moves to ``PATH_archived_TIME``, or ``.._TIME_2`` and so on."""
    from basicsr.utils import get_time_str

    if os.path.exists(path):
        archive = _free(f"{path}_archived_{get_time_str()}")
        sys.stdout.write(f"Path already exists. Rename it to {archive}\n")  # the run has no log yet
        os.rename(path, archive)
    os.makedirs(path, exist_ok=True)


def _free(name: str) -> str:
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(candidate for candidate in names if not Path(candidate).exists())
