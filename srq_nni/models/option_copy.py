"""The option file that an experiment keeps: the options it ran with. BasicSR's copy lacks what ``--force_yml`` set."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from srq_nni.atomic import atomic_file
from srq_nni.models.options import read_options


def install(command: str, overrides: Sequence[str]) -> None:
    """Let BasicSR's ``train_pipeline`` keep its options in this way.

    Args:
        command: what was typed, for the head of the file.
        overrides: values of ``--force_yml``.
    """
    import basicsr.train
    from basicsr.utils.dist_util import master_only

    def copy_opt_file(opt_file: str, experiments_root: str) -> None:
        write(Path(opt_file), Path(experiments_root), command, overrides)

    basicsr.train.copy_opt_file = master_only(copy_opt_file)


def write(option_file: Path, folder: Path, command: str, overrides: Sequence[str]) -> None:
    """Write the options that a run has into ``folder``, under the name of their file.

    Without overrides it is the file as it stands, comments included.

    Raises:
        WriteError: if the disk refuses it.
    """
    if overrides:
        text = yaml.safe_dump(read_options(option_file, overrides), sort_keys=False, allow_unicode=True)
    else:
        text = option_file.read_text(encoding="utf-8")
    head = f"# GENERATE TIME: {time.asctime()}\n# CMD:\n# {command}\n\n"
    with atomic_file(folder / option_file.name) as file:
        file.write((head + text).encode())
