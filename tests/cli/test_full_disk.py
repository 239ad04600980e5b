"""Commands on a disk that fills up or is read-only: status 2, one line, old files whole, and no half ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from basicsr.models.base_model import BaseModel

from srq_nni.cli.main import main
from tests.disks import disk, fill, read_only
from tests.sr_data import REPOSITORY, evaluation_options, float_checkpoint, train_options, write_yaml

RUN = Path("experiments/tiny")


@pytest.fixture
def options(photo_folders: Path, tmp_path: Path) -> dict[str, Any]:
    return train_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))


@pytest.fixture
def last_line(
    work_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Return a function that runs ``srq`` in a folder, which must end with status 2, and returns its last line."""

    def run(folder: Path, *arguments: str) -> str:
        monkeypatch.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        monkeypatch.chdir(work_folder)
        error = capsys.readouterr().err
        assert ended.value.code == 2 and "Traceback" not in error, error
        assert not list(folder.rglob("*.part")) and not list(folder.rglob(".*.part"))
        return error.splitlines()[-1]

    return run


def full_at(monkeypatch: pytest.MonkeyPatch, folder: Path, iteration: int, after: str) -> None:
    """Fill the disk when an iteration begins; ``after`` "network", one and half a training state still fit."""
    update = BaseModel.update_learning_rate

    def update_learning_rate(self: Any, current_iter: int, warmup_iter: int = -1) -> None:
        if current_iter == iteration:
            network, state = (folder / RUN / file for file in ("models/net_g_2.pth", "training_states/2.state"))
            fill(folder, network.stat().st_size + state.stat().st_size // 2 if after == "network" else 0)
        update(self, current_iter, warmup_iter)

    monkeypatch.setattr(BaseModel, "update_learning_rate", update_learning_rate)


@pytest.mark.parametrize(("after", "file"), [("", "models/net_g_4.pth"), ("network", "training_states/4.state")])
@pytest.mark.parametrize("model", ["QuantSRModel", "SRModel"])
def test_a_disk_that_fills_up_while_training(
    options: dict[str, Any],
    tmp_path: Path,
    last_line: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    after: str,
    file: str,
) -> None:
    """The network that was saved before is whole, and once there is space the run goes on from it."""
    if model == "SRModel":
        options["model_type"] = "SRModel"
        del options["quantization"], options["train"]["skt_opt"]
    path = write_yaml(tmp_path / "o.yml", options)
    with disk(tmp_path / "disk", "4m") as folder, monkeypatch.context() as patch:
        full_at(patch, folder, 4, after)
        line = last_line(folder, "train", "-opt", path)
        assert line == (
            f"srq: error: '{folder / RUN / file}' cannot be written: No space left on device; free space on that disk"
        )
        assert "params" in torch.load(folder / RUN / "models" / "net_g_2.pth", weights_only=True)
        assert [state.name for state in (folder / RUN / "training_states").iterdir()] == ["2.state"]
        patch.undo()
        (folder / "ballast").unlink()
        monkeypatch.chdir(folder)
        main(["train", "-opt", path, "--auto_resume"])
        assert (folder / RUN / "models" / "net_g_latest.pth").exists()
        monkeypatch.chdir(tmp_path)


def test_validation_images_on_a_full_disk(
    photo_folders: Path, tmp_path: Path, last_line: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = evaluation_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))
    options |= {"model_type": "SRModel"}
    options["val"] |= {"save_img": True, "suffix": None}
    del options["quantization"]
    path = write_yaml(tmp_path / "o.yml", options)
    with disk(tmp_path / "disk", "200k") as folder:
        fill(folder, 49_152)  # log and folders find a place, and the first image or two
        line = last_line(folder, "test", "-opt", path)
        assert "_tiny.png' cannot be written: No space left on device; free space on that disk" in line
        for image in folder.rglob("*.png"):
            assert cv2.imread(str(image)).shape == (96, 96, 3)


def test_an_export_on_a_full_disk(tmp_path: Path, last_line: Callable[..., str]) -> None:
    pytest.importorskip("onnx")
    checkpoint = str(REPOSITORY / "tests/data/checkpoint_v1.pth")
    with disk(tmp_path / "disk") as folder:
        (folder / "m.onnx").write_bytes(b"old")
        fill(folder, 4096)
        assert last_line(folder, "export", checkpoint, "-o", "m.onnx") == (
            "srq: error: 'm.onnx' cannot be written: No space left on device, and the old file is unchanged; "
            "free space on that disk"
        )
        assert (folder / "m.onnx").read_bytes() == b"old"


def test_read_only_folders(options: dict[str, Any], tmp_path: Path, last_line: Callable[..., str]) -> None:
    path = write_yaml(tmp_path / "o.yml", options)
    remedy = "give a folder on a disk that is not read-only"
    with disk(tmp_path / "disk") as folder, read_only(folder):
        line = last_line(folder, "train", "-opt", path)
        assert line.endswith(f": Read-only file system; {remedy}") and "experiments" in line
        line = last_line(folder, "schema", "-o", "schema.json")
        assert line == f"srq: error: 'schema.json' cannot be written: Read-only file system; {remedy}"
        assert list(folder.iterdir()) == []
