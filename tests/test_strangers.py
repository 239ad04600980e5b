"""Files from strangers: code in them does not run, and a small file does not become a giant in memory."""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import srq_nni
from srq_nni.cli.main import main
from srq_nni.errors import CheckpointError, DataError
from srq_nni.models.options import read_options
from srq_nni.models.preflight_data import LARGEST_IMAGE, check_image_folder
from tests.sr_data import Missing, changed, evaluation_options, float_checkpoint, train_options, write_yaml


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.fixture
def evil(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes a file of torch.save which would create ``trace`` when it is unpickled."""

    def write(name: str) -> Path:
        content = {
            "params": Touch(tmp_path / "trace"),
            "iter": Touch(tmp_path / "trace"),
            "srq": Touch(tmp_path / "trace"),
        }
        torch.save(content, tmp_path / name)
        return tmp_path / name

    torch.load(write("evil.pth"), weights_only=False)
    assert (tmp_path / "trace").exists(), "the file is not what it should be"
    (tmp_path / "trace").unlink()
    return write


def test_a_checkpoint_runs_no_code(evil: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read \("):
        srq_nni.load(evil("net.pth"))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("model", "key"),
    [
        *[("QuantSRModel", key) for key in ("pretrain_network_g", "pretrain_network_t", "resume_state")],
        *[("SRModel", key) for key in ("pretrain_network_g", "resume_state")],  # it has no teacher
    ],
)
def test_no_file_that_an_option_names_runs_code(
    evil: Callable[[str], Path],
    photo_folders: Path,
    tmp_path: Path,
    work_folder: Path,
    capsys: pytest.CaptureFixture[str],
    key: str,
    model: str,
) -> None:
    options = train_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))
    if model == "SRModel":
        options = changed(changed(options, "quantization", Missing), "train:skt_opt", Missing) | {"model_type": model}
        options["path"].pop("pretrain_network_t")
    options["path"][key] = str(evil("evil.state"))
    with pytest.raises(SystemExit) as ended:
        main(["train", "-opt", write_yaml(tmp_path / "o.yml", options)])
    assert ended.value.code == 2 and "cannot be read (" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "line",
    [
        "test -opt {yaml}",
        "search -opt {search} --max-size 1 -o {folder}/found",
        "equalize -opt {search} -o {folder}/e.pth",
        "summary {evil}",
        "export {evil} -o m.onnx",
        "pack {evil} -o m.safetensors",
        "convert {evil} -o m.pth --from pams",
        "convert {evil} -o m.pth --to pams",
        "bench {evil}",
        "upscale {photos}/HR -m {evil} -o out",
        "report {folder}/run",
    ],
)
def test_no_command_runs_code_of_a_checkpoint(
    evil: Callable[[str], Path],
    photo_folders: Path,
    tmp_path: Path,
    work_folder: Path,
    capsys: pytest.CaptureFixture[str],
    line: str,
) -> None:
    file = evil("net.pth")
    (tmp_path / "run" / "models").mkdir(parents=True)
    shutil.copy(file, tmp_path / "run" / "models" / "net_g_latest.pth")
    names = {
        "yaml": write_yaml(tmp_path / "o.yml", evaluation_options(photo_folders, str(file))),
        "search": write_yaml(tmp_path / "s.yml", train_options(photo_folders, str(file))),
        "evil": file,
        "photos": photo_folders,
        "folder": tmp_path,
    }
    with pytest.raises(SystemExit) as ended:
        main([word.format(**names) for word in line.split()])
    assert ended.value.code == 2 and "cannot be read (" in capsys.readouterr().err
    assert not (tmp_path / "trace").exists() and not list(work_folder.iterdir())


def test_yaml_and_overrides_run_no_code(tmp_path: Path, work_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command, where BasicSR's own reader runs tags, evaluates lists, and executes keys."""
    tag = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{tmp_path / 'trace'}]]"
    (tmp_path / "evil.yml").write_text(f"name: {tag}\n")
    (tmp_path / "good.yml").write_text("name: x\n")
    touch = f"__import__('pathlib').Path('{tmp_path / 'trace'}').touch()"
    lines = [
        ["-opt", str(tmp_path / "evil.yml")],
        ["-opt", str(tmp_path / "good.yml"), "--force_yml", f"name={tag}"],
        ["-opt", str(tmp_path / "good.yml"), "--force_yml", f"name=[{touch}]"],
        ["-opt", str(tmp_path / "good.yml"), "--force_yml", f'name"];{touch};["x=1'],
    ]
    for command in ("train", "test"):
        for line in lines:
            with pytest.raises(SystemExit) as ended:
                main([command, *line])
            assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "trace").exists()
    assert read_options(tmp_path / "good.yml", [f"name=[{touch}]"])["name"] != [None]


def png(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that claims to have so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_a_search_reads_no_image_of_ten_billion_pixels(
    photo_folders: Path, work_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photo_folders, "photos")
    Path("photos/HR/coffee.png").write_bytes(png(100_000, 100_000))
    write_yaml(Path("o.yml"), train_options(Path("photos"), float_checkpoint(Path("float.pth"))))
    with pytest.raises(SystemExit) as ended:
        main(["search", "-opt", "o.yml", "--max-size", "1"])
    assert ended.value.code == 2 and not Path("search").exists()
    assert capsys.readouterr().err == (
        "srq: error: datasets: train: 'photos/HR/coffee.png' unpacks to more than 178956970 pixels; "
        "replace or remove it\n"
    )


def test_an_image_of_ten_billion_pixels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "HR").mkdir()
    (tmp_path / "HR" / "bomb.png").write_bytes(png(100_000, 100_000))
    with pytest.raises(DataError) as caught:
        check_image_folder(tmp_path / "HR", "datasets: train: dataroot_gt")
    assert str(caught.value) == (
        f"datasets: train: dataroot_gt: '{tmp_path / 'HR' / 'bomb.png'}' unpacks to more than 178956970 pixels; "
        "replace or remove it"
    )
    assert Image.MAX_IMAGE_PIXELS is not None and 2 * Image.MAX_IMAGE_PIXELS == LARGEST_IMAGE - LARGEST_IMAGE % 2


def test_upscale_refuses_it_too(tmp_path: Path, work_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    (work_folder / "bomb.png").write_bytes(png(100_000, 100_000))
    checkpoint = str(Path(__file__).parent / "data" / "checkpoint_v1.pth")
    with pytest.raises(SystemExit) as ended:
        main(["upscale", "bomb.png", "-m", checkpoint, "-o", "big.png", "--engine", "onnxruntime"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "bomb.png" in error and "pixels" in error, error
    assert [file.name for file in work_folder.iterdir()] == ["bomb.png"]
