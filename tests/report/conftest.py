"""A short DDTB run with validation and TensorBoard, made once, and the report of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sr_data import REPOSITORY, float_checkpoint, train_options, write_photo_folders, write_yaml

DDTB = {"quantizer": "ddtb", "bits": 3, "calibration_iters": 2, "static_iters": 2, "dynamic_ratio": 0.5}


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder ``experiments/tiny`` of a run of 8 iterations; nothing may write into it."""
    root = tmp_path_factory.mktemp("report")
    options = train_options(write_photo_folders(root / "photos"), float_checkpoint(root / "float.pth"))
    options["quantization"] = DDTB
    options["train"]["total_iter"] = 8
    options["val"]["val_freq"] = 4
    options["logger"] |= {"use_tb_logger": True}
    file = write_yaml(root / "tiny.yml", options)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "srq_nni", "train", "-opt", file]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return root / "experiments" / "tiny"


@pytest.fixture(scope="session")
def page(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of ``experiment``."""
    from srq_nni.report import write_report

    return write_report(experiment, tmp_path_factory.mktemp("page") / "report")
