"""From a float checkpoint to a tested quantized one, as a user runs it; and a run that is killed and goes on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import srq_nni
from srq_nni.cli.main import main
from srq_nni.models.quant_sr_model import QuantSRModel
from tests.sr_data import (
    REPOSITORY,
    changed,
    evaluation_options,
    float_checkpoint,
    train_options,
    write_yaml,
)

# DDTB's first iterations only observe, so the first scheduler step comes before the first optimizer step.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
RESULT = Path("experiments") / "tiny" / "models" / "net_g_latest.pth"


def srq(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "srq_nni", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes)  # type: ignore[call-overload]


def finished(process: subprocess.Popen[str]) -> str:
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


def weights(folder: Path) -> dict[str, Any]:
    content = torch.load(folder / RESULT, weights_only=True)
    return {f"{part}.{key}": value for part in ("params", "params_ema") for key, value in content[part].items()}


def assert_same_weights(first: Path, second: Path) -> None:
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    assert not [key for key, value in one.items() if not torch.equal(value, two[key])]


def psnr(log: str) -> list[str]:
    return re.findall(r"# psnr: (\d+\.\d+)", log)


def test_train_then_test_in_processes_of_their_own(photo_folders: Path, tmp_path: Path) -> None:
    options = train_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))
    trained = finished(srq("train", "-opt", write_yaml(tmp_path / "train.yml", options), folder=tmp_path))
    assert "l_pix: " in trained and "l_skt: " in trained

    result = str(tmp_path / RESULT)
    tested = evaluation_options(photo_folders, result)
    tested["path"]["param_key_g"] = "params_ema"
    log = finished(srq("test", "-opt", write_yaml(tmp_path / "test.yml", tested), folder=tmp_path))
    assert psnr(log) and psnr(log)[-1] == psnr(trained)[-1], "the file must score what the run scored"
    assert isinstance(srq_nni.load(result), torch.nn.Module)


def test_version_in_a_process(tmp_path: Path) -> None:
    assert finished(srq("--version", folder=tmp_path)) == f"srq {srq_nni.__version__}\n"


@pytest.mark.parametrize(
    "block",
    [
        {"quantizer": "ddtb", "bits": 2, "calibration_iters": 2, "static_iters": 2},
        {"quantizer": "pams", "bits": {"weight": 2, "activation": 8}, "wiring": "deploy", "calibration_iters": 2},
        {"quantizer": "pams", "config_list": [{"op_types": ["Conv2d"], "quant_dtype": "int8"}]},
    ],
)
def test_other_blocks_train(photo_folders: Path, tmp_path: Path, work_folder: Path, block: dict[str, Any]) -> None:
    options = train_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))
    main(["train", "-opt", write_yaml(tmp_path / "train.yml", changed(options, "quantization", block))])
    assert srq_nni.load(work_folder / RESULT)(torch.rand(1, 3, 8, 8)).shape == (1, 3, 16, 16)


def test_deleting_the_block_trains_the_float_network(photo_folders: Path, tmp_path: Path, work_folder: Path) -> None:
    options = changed(train_options(photo_folders, float_checkpoint(tmp_path / "f.pth")), "model_type", "SRModel")
    del options["quantization"]
    main(["train", "-opt", write_yaml(tmp_path / "train.yml", options)])
    assert set(torch.load(work_folder / RESULT, weights_only=True)) == {"params", "params_ema"}


def test_force_yml_reaches_the_run(photo_folders: Path, tmp_path: Path, work_folder: Path) -> None:
    path = write_yaml(tmp_path / "o.yml", train_options(photo_folders, float_checkpoint(tmp_path / "float.pth")))
    main(["train", "-opt", path, "--force_yml", "quantization:bits=2", "name=tiny", "train:total_iter=1"])
    assert torch.load(work_folder / RESULT, weights_only=True)["srq"]["quantization"]["bits"] == 2


def uninterrupted_and_stopped(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> tuple[Path, Path]:
    """Run once without and once with a stop at iteration ``stop``, then go on; return both folders."""
    path = write_yaml(tmp_path / "o.yml", options)
    folders = tmp_path / "whole", tmp_path / "stopped"
    optimize = QuantSRModel.optimize_parameters

    def stopping(model: Any, iteration: int) -> None:
        if iteration == stop:
            raise KeyboardInterrupt
        optimize(model, iteration)

    for folder in folders:
        folder.mkdir()
        monkeypatch.chdir(folder)
        if folder.name == "stopped":
            with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
                patch.setattr(QuantSRModel, "optimize_parameters", stopping)
                main(["train", "-opt", path])
            assert ended.value.code == 130
        main(["train", "-opt", path, *(["--auto_resume"] if folder.name == "stopped" else [])])
    return folders


def with_quantizer(options: dict[str, Any], quantizer: str) -> dict[str, Any]:
    ddtb = {"quantizer": "ddtb", "bits": 2, "calibration_iters": 3, "static_iters": 2, "dynamic_ratio": 0.5}
    return changed(options, "quantization", ddtb) if quantizer == "ddtb" else options


@pytest.mark.parametrize("quantizer", ["pams", "ddtb"])
@pytest.mark.parametrize("stop", [4, 9])
def test_a_stopped_run_ends_with_the_same_weights(
    photo_folders: Path, tmp_path: Path, work_folder: Path, monkeypatch: pytest.MonkeyPatch, quantizer: str, stop: int
) -> None:
    """Ctrl-C within an epoch, and after the last iteration of one; what SIGKILL leaves is in test_killed.py."""
    options = with_quantizer(train_options(photo_folders, float_checkpoint(tmp_path / "float.pth")), quantizer)
    options["train"]["total_iter"] = 9
    assert_same_weights(*uninterrupted_and_stopped(options, tmp_path, monkeypatch, stop))


def test_workers_and_prefetch_do_not_change_the_data(
    photo_folders: Path, tmp_path: Path, work_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = train_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))
    options["train"]["total_iter"] = 9
    weights_of = []
    for workers, prefetch in ((0, None), (2, "cpu")):
        options["datasets"]["train"] |= {"num_worker_per_gpu": workers, "prefetch_mode": prefetch}
        folder = tmp_path / f"workers{workers}"
        folder.mkdir()
        weights_of.append(uninterrupted_and_stopped(options, folder, monkeypatch, 6))
    for folder in (weights_of[0][1], *weights_of[1]):
        assert_same_weights(weights_of[0][0], folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("quantization:bits=2", "was made with bits: 4 and the options say bits: 2; make them equal"),
        ("quantization:wiring=deploy", "was made with wiring: paper and the options say wiring: deploy; make them"),
        ("quantization:quantizer=ddtb", "was made with quantizer: pams and the options say quantizer: ddtb; make"),
    ],
)
def test_a_run_does_not_go_on_as_another(
    photo_folders: Path,
    tmp_path: Path,
    work_folder: Path,
    capsys: pytest.CaptureFixture[str],
    change: str,
    expected: str,
) -> None:
    options = train_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))
    options["train"]["total_iter"] = 2
    path = write_yaml(tmp_path / "o.yml", options)
    main(["train", "-opt", path])
    before = (work_folder / RESULT).read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(["train", "-opt", path, "--auto_resume", "--force_yml", "train:total_iter=4", change])
    assert ended.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("srq: error: checkpoint '") and f"net_g_2.pth' {expected}" in message
    assert (work_folder / RESULT).read_bytes() == before


def test_a_run_without_a_seed_goes_on_with_the_one_it_drew(
    photo_folders: Path, tmp_path: Path, work_folder: Path
) -> None:
    options = train_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))
    del options["manual_seed"]
    options["train"]["total_iter"] = 4
    path = write_yaml(tmp_path / "o.yml", options)
    main(["train", "-opt", path])
    states = work_folder / "experiments" / "tiny" / "training_states"
    drawn = torch.load(states / "4.state", weights_only=True)["seed"]
    main(["train", "-opt", path, "--auto_resume", "--force_yml", "train:total_iter=6"])
    assert torch.load(states / "6.state", weights_only=True)["seed"] == drawn is not None
