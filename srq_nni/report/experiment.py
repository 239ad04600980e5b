"""What a training run left behind: its options, checkpoints, logs and curves, found in its folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srq_nni import checkpoint
from srq_nni.errors import CheckpointError, DataError, did_you_mean
from srq_nni.models.options import read_options


@dataclass(frozen=True)
class Experiment:
    """A folder ``experiments/NAME`` of BasicSR.

    Attributes:
        folder: the folder itself.
        root: the folder that holds ``experiments`` and ``tb_logger``; relative paths of the options start there.
        options: the option file that BasicSR copied into the folder; empty if there is none.
        metadata: network and quantization of the newest checkpoint.
        checkpoints: (iteration, file) of the numbered checkpoints, oldest first.
        newest: the checkpoint that the report is about.
        logs: the text logs of training, oldest first.
    """

    folder: Path
    root: Path
    options: Mapping[str, Any]
    metadata: Mapping[str, Any]
    checkpoints: tuple[tuple[int, Path], ...]
    newest: Path
    logs: tuple[Path, ...]

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.name

    @property
    def events(self) -> Path:
        """Folder of the quantizers' TensorBoard curves; it exists only where ``use_tb_logger`` was set."""
        return self.root / "tb_logger" / self.name / "quantizers"

    def path(self, text: str | os.PathLike[str]) -> Path:
        """Return a path of the options as it was meant: relative to ``root``."""
        return self.root / Path(os.path.expanduser(text))


def open_experiment(folder: str | os.PathLike[str]) -> Experiment:
    """Return the experiment in ``folder``.

    Raises:
        DataError: if the folder is missing or is no experiment.
        CheckpointError: if it has no checkpoint that srq-nni wrote.
    """
    folder = Path(os.path.expanduser(folder))
    if folder.is_file():
        raise DataError(f"experiment '{folder}' is a file; give the folder of a run, such as experiments/NAME")
    if not folder.is_dir():
        siblings = [item.name for item in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        raise DataError(
            f"experiment '{folder}' is not a folder; give one that srq train made, such as experiments/NAME"
            f"{did_you_mean(folder.name, siblings)}"
        )
    folder = folder.resolve()
    models = folder / "models"
    if not models.is_dir():
        inside = [item.parent.name for item in folder.glob("*/models")]
        hint = f"; did you mean '{folder / inside[0]}'?" if inside else ""
        raise DataError(f"'{folder}' has no folder 'models'; give one that srq train made, experiments/NAME{hint}")
    numbered = sorted((int(path.stem[6:]), path) for path in models.glob("net_g_*.pth") if path.stem[6:].isdecimal())
    latest = models / "net_g_latest.pth"
    newest = latest if latest.is_file() else numbered[-1][1] if numbered else None
    if newest is None:
        raise CheckpointError(
            f"'{models}' holds no net_g_*.pth yet; train until logger: save_checkpoint_freq, then ask again"
        )
    metadata = checkpoint.read(newest).get(checkpoint.METADATA_KEY)
    if metadata is None:
        raise CheckpointError(
            f"checkpoint '{newest}' does not say how it is quantized; give a run of model_type QuantSRModel"
        )
    files = sorted(folder.glob("*.y*ml"), key=lambda path: path.stat().st_mtime)
    options = read_options(files[-1]) if files else {}
    logs = tuple(sorted(folder.glob("train_*.log")))
    return Experiment(folder, folder.parent.parent, options, metadata, tuple(numbered), newest, logs)
