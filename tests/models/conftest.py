"""Options of a tiny run and two batches of photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sr_data import batch, float_checkpoint, train_options

NAMES = ("astronaut", "chelsea", "coffee", "rocket")


@pytest.fixture
def options(photo_folders: Path, tmp_path: Path) -> dict[str, Any]:
    opt = train_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))
    opt |= {"is_train": True, "dist": False, "rank": 0, "world_size": 1}
    opt["path"] |= {"models": str(tmp_path / "models"), "training_states": str(tmp_path / "states")}
    return opt


@pytest.fixture
def batches(photo_folders: Path) -> list[dict[str, torch.Tensor]]:
    return [batch(photo_folders, *NAMES[:2]), batch(photo_folders, *NAMES[2:])]
