"""Every YAML that users copy trains, validates, resumes and is tested, on small real images and a small network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import srq_nni
from tests.configs.runs import read_options, run, small_network, small_training, write_float_weights

FOLDER = Path(__file__).parents[2] / "basicsr_configs"
TRAINING = sorted((FOLDER / "train").glob("*.yml"))

# DDTB's first iterations only observe, so the first scheduler step comes before the first optimizer step.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")


def has_gates(options: dict[str, Any]) -> bool:
    """Whether the file gives DDTB's layers gates."""
    return bool(options["quantization"].get("dynamic_ratio"))


def phases(options: dict[str, Any]) -> list[str]:
    """Return overrides with which iteration 1 calibrates, 2 holds the gates and the next ones train all."""
    gates = ["quantization:dynamic_ratio=0.5"] if has_gates(options) else []
    ddtb = ["quantization:static_iters=1", *gates]
    return ["quantization:calibration_iters=1", *(ddtb if options["quantization"]["quantizer"] == "ddtb" else [])]


def scores(log: str) -> list[tuple[str, str]]:
    """Return (metric, value) of every validation in a log."""
    return re.findall(r"# (psnr|ssim): (\d+\.\d+)", log)


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_train_resume_and_test(path: Path, run_folder: Path) -> None:
    options = read_options(path)
    name = options["name"]
    overrides = [*small_training(options), *phases(options)]
    write_float_weights(read_options(path), overrides)

    metrics = ["psnr", "ssim"] if "val" in options else []
    first = run("train", path, overrides)
    assert [metric for metric, _ in scores(first)] == 2 * metrics, "at iteration 2 and at the end"
    models = Path("experiments") / name / "models"
    assert (models / "net_g_2.pth").is_file()
    resumed = run("train", path, [*overrides, "train:total_iter=4"], "--auto_resume")
    assert "Resuming training from epoch: 0, iter: 2." in resumed
    assert [metric for metric, _ in scores(resumed)] == 2 * metrics
    state = torch.load(models / "net_g_4.pth", weights_only=True)
    assert all(torch.isfinite(value).all() for value in state["params"].values())
    assert state["srq"]["quantization"]["bits"] == options["quantization"]["bits"]
    if options["quantization"]["quantizer"] == "ddtb":
        applied = [bool(value) for key, value in state["params"].items() if key.endswith("gate_is_applied")]
        assert applied and any(applied) == has_gates(options)
    tested = FOLDER / "test" / path.name.replace("train_", "test_", 1)
    if not tested.exists():  # the demo measures by itself
        assert isinstance(srq_nni.load(models / "net_g_latest.pth"), torch.nn.Module)
        return
    log = run("test", tested, small_network(read_options(tested)))
    assert [metric for metric, _ in scores(log)] == ["psnr", "ssim"] * 4
    assert scores(log)[:2] == scores(resumed)[-2:], "Set5 scores what the training said"
    assert len(list((Path("results") / name / "visualization").rglob("*.png"))) == 4
