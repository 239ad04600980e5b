"""A run that is killed, in any phase or while it saves, and goes on ends with the bits of one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from srq_nni import checkpoint
from tests.cli.killing import MODELS, STATES, digest, train
from tests.sr_data import NETWORK, REPOSITORY, changed, float_checkpoint, train_options, write_yaml

pytestmark = [pytest.mark.processes, pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")]
LAST = 8  # iterations of a run; a checkpoint each 2
SRRESNET = {"type": "SRResNet", "num_feat": 8, "num_block": 1, "upscale": 2}
SWINIR = {
    "type": "SwinIR",
    "upscale": 2,
    "in_chans": 3,
    "img_size": 16,
    "window_size": 4,
    "depths": [2],
    "embed_dim": 8,
    "num_heads": [2],
    "drop_path_rate": 0.5,
    "drop_rate": 0.1,
    "upsampler": "pixelshuffledirect",
}
PAMS = {"quantizer": "pams", "bits": 4, "calibration_iters": 3}
DDTB = {"quantizer": "ddtb", "bits": 2, "calibration_iters": 3, "static_iters": 2, "dynamic_ratio": 0.5}
RUNS: dict[str, dict[str, Any]] = {
    "pams": {"quantization": PAMS, "network_g": NETWORK},
    "ddtb": {"quantization": DDTB, "network_g": NETWORK},
    "ddtb_srresnet": {"quantization": {**DDTB, "profile": "official"}, "network_g": SRRESNET},  # batch norm; no average
    "swinir": {
        "base_model": "SwinIRModel",
        "network_g": SWINIR,
        "quantization": {"quantizer": "pams", "config_list": [{"op_types": ["Linear"], "quant_dtype": "int8"}]},
    },
    "stock": {"model_type": "SRModel", "network_g": SWINIR},
    "alias": {"model_type": "SRModel", "network_g": {**NETWORK, "type": "DDTB_EDSR", "bits": 4}},
}


@pytest.fixture(scope="module")
def runs(photo_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return a function: name of a run -> its option file, and the hash it ends with if nothing stops it."""
    root = tmp_path_factory.mktemp("runs")
    whole: dict[str, tuple[str, str]] = {}

    def run(name: str) -> tuple[str, str]:
        if name not in whole:
            options = options_of(name, photo_folders, root)
            path = write_yaml(root / f"{name}.yml", options)
            assert train(root / name, path) == 0
            whole[name] = path, digest(root / name, LAST)
        return whole[name]

    yield run


def options_of(name: str, photo_folders: Path, root: Path) -> dict[str, Any]:
    run = RUNS[name]
    network = run["network_g"]
    plain = {**{k: v for k, v in network.items() if k != "bits"}, "type": network["type"].removeprefix("DDTB_")}
    options = train_options(photo_folders, float_checkpoint(root / f"{name}.pth", plain))
    options |= run
    options["train"] |= {"total_iter": LAST, "ema_decay": 0 if name == "ddtb_srresnet" else 0.9}
    options["datasets"]["train"] |= {"num_worker_per_gpu": 2 if name == "ddtb" else 1, "prefetch_mode": "cpu"}
    options = changed(options, "val", None)
    if run.get("model_type") == "SRModel":
        del options["quantization"]
    if "quantization" not in options or "base_model" in options:
        options["path"].pop("pretrain_network_t")
        options["train"].pop("skt_opt")
    return options


def kill_and_resume(
    runs: Any, name: str, folder: Path, *kills: tuple[str, Any], expect_state: str | None = None
) -> None:
    path, expected = runs(name)
    for number, kill in enumerate(kills):
        assert train(folder, path, *["--auto_resume"] * bool(number), kill=kill) == -signal.SIGKILL
        for file in (folder / MODELS).glob("*.pth"):
            if name not in ("stock", "alias"):  # BasicSR writes those itself, in place
                checkpoint.read(file)
        for file in (folder / STATES).glob("*.state"):
            if name not in ("stock", "alias"):
                torch.load(file, weights_only=True)
    if expect_state is not None:
        assert sorted(file.name for file in (folder / STATES).glob("*.state"))[-1] == expect_state
    assert train(folder, path, "--auto_resume") == 0
    assert digest(folder, LAST) == expected
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize(
    ("name", "iteration"),
    [
        *[("pams", 3), ("pams", 6)],  # calibrating, training
        *[("ddtb", 3), ("ddtb", 5), ("ddtb", 8)],  # observing, gates held, gates applied
        ("ddtb_srresnet", 8),
        *[("swinir", 5), ("stock", 5), ("alias", 5)],
    ],
)
def test_killed_in_a_phase(runs: Any, tmp_path: Path, name: str, iteration: int) -> None:
    kill_and_resume(runs, name, tmp_path / "killed", ("iteration", iteration))


@pytest.mark.parametrize(
    ("name", "place", "file", "newest"),
    [
        ("ddtb", "halfway", "net_g_4.pth", "2.state"),
        ("ddtb", "halfway", "6.state", "4.state"),
        ("pams", "unnamed", "4.state", "2.state"),
        ("pams", "written", "net_g_4.pth", "2.state"),
        ("pams", "written", "6.state", "6.state"),
        ("ddtb", "halfway", "net_g_latest.pth", "8.state"),
        ("alias", "halfway", "net_g_6.pth", "4.state"),
        ("alias", "halfway", "6.state", "4.state"),
    ],
)
def test_killed_while_saving(runs: Any, tmp_path: Path, name: str, place: str, file: str, newest: str) -> None:
    kill_and_resume(runs, name, tmp_path / "killed", (place, file), expect_state=newest)


def test_killed_again_and_again(runs: Any, tmp_path: Path) -> None:
    kills = [("iteration", 2), ("halfway", "net_g_2.pth"), ("iteration", 4), ("unnamed", "4.state"), ("iteration", 7)]
    kill_and_resume(runs, "ddtb", tmp_path / "killed", *kills, expect_state="6.state")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pams", "ddtb"])
def test_killed_at_any_moment(name: str, photo_folders: Path, tmp_path: Path) -> None:
    """Real processes that save after each iteration, killed up to a second after they have got a step further."""
    options = options_of(name, photo_folders, tmp_path)
    options["train"]["total_iter"], options["logger"]["save_checkpoint_freq"] = 400, 1
    options["quantization"] |= {"calibration_iters": 100, **({"static_iters": 100} if name == "ddtb" else {})}
    path = write_yaml(tmp_path / "o.yml", options)
    assert train(tmp_path / "whole", path) == 0
    folder, chance, reached = tmp_path / "killed", random.Random(name), [0]
    folder.mkdir()
    command = [sys.executable, "-m", "srq_nni", "train", "-opt", path, "--auto_resume"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}

    def newest() -> int:
        return max((int(file.stem) for file in (folder / STATES).glob("*.state")), default=0)

    for _ in range(6):
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None and newest() == reached[-1]:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 1))
        assert process.poll() is None, "it reached the end before it was killed"
        process.kill()
        process.wait()
        reached.append(newest())
        for file in [*(folder / MODELS).glob("*.pth"), *(folder / STATES).glob("*.state")]:
            torch.load(file, weights_only=True)
    assert sorted(set(reached)) == reached and reached[-1] < 400
    assert subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL).returncode == 0
    assert digest(folder, 400) == digest(tmp_path / "whole", 400)
