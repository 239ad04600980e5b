"""What takes a while shows how far it is on a terminal, and writes nothing where there is none."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from srq_nni.cli.main import main
from tests.sr_data import REPOSITORY, float_checkpoint, train_options, write_yaml
from tests.terminals import standard_error

CHECKPOINT = REPOSITORY / "tests" / "data" / "checkpoint_v1.pth"
COMMANDS = {
    "export net.pth -o net.onnx": [("Exporting for openvino:", "0/18", "layer")],
    "bench net.pth --engine openvino --size 8x8 --repeats 1 --json bench.json": [
        ("Building engines:", "0/1", "engine"),
        ("Exporting for openvino:", "0/18", "layer"),
        ("Measuring net.pth:", "0/2", "round"),
        ("Comparing with the simulator:", "0/5", "variant"),
    ],
    "upscale in -m net.pth -o out --tile 8 --threads 1": [
        ("Exporting for openvino:", "0/18", "layer"),
        ("Images:", "0/2", "image"),
        ("Windows:", "0/", "window"),
    ],
    "summary -opt o.yml": [("Measuring training steps:", "0/6", "step")],
}


@pytest.fixture
def here(work_folder: Path, photo_folders: Path) -> Path:
    shutil.copy(CHECKPOINT, "net.pth")
    Path("in").mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.ascontiguousarray(data.astronaut()[100:117, 150:173])).save(f"in/{name}.png")
    write_yaml(Path("o.yml"), train_options(photo_folders, float_checkpoint(Path("float.pth"))))
    return work_folder


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("command", COMMANDS)
def test_bars(command: str, is_terminal: bool, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    with standard_error(monkeypatch, is_terminal=is_terminal) as screen:
        main(command.split())
    if is_terminal:
        for words in COMMANDS[command]:
            assert screen.shows(*words, "<"), words
    else:
        assert screen.text == ""
