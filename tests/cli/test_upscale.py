"""``srq upscale`` from the command line: what it prints, how it ends, and that wrong input writes nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from srq_nni.cli.main import main
from srq_nni.speedup import upscale
from srq_nni.speedup.openvino import has_bfloat16
from tests.speedup.upscale.networks import nearest, repeated
from tests.sr_data import REPOSITORY

pytest.importorskip("openvino")
PHOTO = np.ascontiguousarray(data.astronaut()[100:117, 150:173])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a network, a photo and a folder of two photos, a broken one and a text."""
    monkeypatch.chdir(tmp_path)
    nearest(tmp_path / "x2.onnx")
    (tmp_path / "in").mkdir()
    for name in ("photo.png", "in/a.png", "in/b.png"):
        Image.fromarray(PHOTO).save(tmp_path / name)
    (tmp_path / "in/broken.png").write_bytes(b"\x89PNG")
    (tmp_path / "in/notes.txt").touch()
    return tmp_path


def test_one_image(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["upscale", "photo.png", "-m", "x2.onnx", "-o", "large.png", "--tile", "8", "--threads", "1"])
    captured = capsys.readouterr()
    first, last = captured.out.splitlines()
    assert first.startswith("large.png: 23x17 -> 46x34, ") and last.startswith("1 image x2 with openvino in ")
    assert captured.err == "", "bars are for terminals"
    assert np.array_equal(np.asarray(Image.open("large.png")), repeated(PHOTO))


def test_floats_in_another_precision(here: Path) -> None:
    """The whole network is a tail; OpenVINO hands its output on as float32, so rounding to 8 bits comes after."""
    main(["upscale", "photo.png", "-m", "x2.onnx", "-o", "large.png", "--float-precision", "bfloat16-tail"])
    values = torch.from_numpy(PHOTO) / 255
    rounded = (values.bfloat16().float() if has_bfloat16() else values) * 255
    assert np.array_equal(np.asarray(Image.open("large.png")), repeated(rounded.round().byte().numpy()))


def test_a_folder_with_a_broken_image(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["upscale", "in", "-m", "x2.onnx", "-o", "out", "--format", "webp"])
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.err.splitlines() == [
        "srq: skipped 'in/notes.txt'",
        "srq: 'in/broken.png' is no image that Pillow can read; give a PNG, JPEG, WebP, TIFF or BMP file",
        "srq: error: 1 of 3 images failed (broken.png); the others are written",
    ]
    assert [line.partition(",")[0] for line in captured.out.splitlines()[:2]] == [
        "out/a.webp: 23x17 -> 46x34",
        "out/b.webp: 23x17 -> 46x34",
    ]
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.webp", "b.webp"]


def test_names_that_are_not_utf_8(here: Path) -> None:
    """A folder of them is enlarged whole in an ordinary UTF-8 locale."""
    (here / "in/broken.png").unlink()
    shutil.copy(b"photo.png", b"in/caf\xe9.png")
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-m", "srq_nni", "upscale", "in", "-m", "x2.onnx", "-o", "out"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("srq: skipped 'in/notes.txt'\n", 0)
    assert "out/caf\\udce9.png: 23x17 -> 46x34" in done.stdout and "3 images x2 with openvino" in done.stdout
    assert sorted(os.listdir(b"out")) == [b"a.png", b"b.png", b"caf\xe9.png"]


def test_a_missing_model_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also for a folder with files that would be skipped."""
    with pytest.raises(SystemExit) as ended:
        main(["upscale", "in", "-m", "missing.onnx", "-o", "out"])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith("srq: error: ") and "missing.onnx" in line
    assert not Path("out").exists()


def test_ctrl_c_leaves_whole_images_and_says_how_to_go_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = upscale.SRNetwork.run
    calls = []

    def second_is_stopped(self: upscale.SRNetwork, image: np.ndarray) -> np.ndarray:
        calls.append(image)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, image)

    monkeypatch.setattr(upscale.SRNetwork, "run", second_is_stopped)
    with pytest.raises(SystemExit) as ended:
        main(["upscale", "in", "-m", "x2.onnx", "-o", "out"])
    assert ended.value.code == 130
    assert [path.name for path in Path("out").iterdir()] == ["a.png"]
    assert capsys.readouterr().err.endswith(
        "srq: stopped; finished images are whole, and the same command with --skip-existing goes on with the others\n"
    )
    monkeypatch.undo()
    with pytest.raises(SystemExit):  # the broken one
        main(["upscale", str(here / "in"), "-m", str(here / "x2.onnx"), "-o", str(here / "out"), "--skip-existing"])
    assert sorted(path.name for path in (here / "out").iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("photo.pgn -m x2.onnx -o x.png", "'photo.pgn' does not exist; give an image or a folder of images; did you"),
        ("photo.png -m x3.onnx -o x.png", "'x3.onnx' cannot be read: No such file or directory; give an ONNX file"),
        ("photo.png -m photo.png -o x.png", "checkpoint 'photo.png' cannot be read"),
        ("photo.png -m x2.onnx -o photo.png", "'photo.png' is the image 'photo.png' itself; give another name"),
        ("photo.png -m x2.onnx -o x.gif", "'x.gif' has no known ending; give one of .png, .jpg, .jpeg, .webp"),
        ("in -m x2.onnx -o in", "'in' is the folder the images come from; give another one"),
        ("in -m x2.onnx -o out --format jpeg2000", "format: 'jpeg2000' is not known; give one of png, jpg, jpeg, webp"),
        ("photo.png -m x2.onnx -o x.png --engine onnx", "engine: 'onnx' is not known; give one of openvino"),
        ("photo.png -m x2.onnx -o x.png --tile -5", "tile: -5 is not allowed; give a number of pixels from 0"),
        ("photo.png -m x2.onnx -o x.png --overlap -1", "overlap: -1 is not allowed; give a number of pixels from 0"),
        ("photo.png -m x2.onnx -o x.png --threads 0", "threads: 0 is not allowed; give a number from 1"),
        ("photo.png -m x2.onnx -o x.png --max-pixels 0", "max_pixels: 0 is not allowed; give a number of pixels"),
        ("photo.png -m x2.onnx -o x.png --max-pixels 9", "'photo.png' has 23 x 17 pixels and the limit is 9; raise it"),
        (
            "photo.png -m x2.onnx -o x.png --float-precision bfloat16-tial",
            "float_precision: 'bfloat16-tial' is not known; give one of float32, bfloat16, bfloat16-tail; did you mean",
        ),
        (
            "photo.png -m x2.onnx -o x.png --engine onnxruntime --float-precision bfloat16",
            "float_precision: 'bfloat16' is for openvino, and 'onnxruntime' has no such choice; leave it out or give",
        ),
        ("photo.png -m x2.onnx -o x.png --value-range 0", "value_range: '0.0' is not allowed; give the value of white"),
    ],
)  # fmt: skip
def test_wrong_input(arguments: str, text: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main(["upscale", *arguments.split()])
    last = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2
    assert last.startswith(f"srq: error: {text}")
    assert sorted(here.rglob("*")) == before
