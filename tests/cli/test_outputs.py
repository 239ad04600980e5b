"""Every file that a command writes: whole or not at all, on a full disk, on a read-only one, and when it is killed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srq_nni.cli.main import main
from tests.cli.killing import die, forked
from tests.disks import disk, fill, read_only
from tests.sr_data import REPOSITORY, float_checkpoint, train_options, write_yaml

COMMANDS = {  # what is written, below the working directory -> how
    "net.onnx": "export {net} -o net.onnx",
    "net.safetensors": "pack {net} -o net.safetensors",
    "theirs.pth": "convert {float} -o theirs.pth --to edsr-pytorch --rgb-mean 0 0 0 --img-range 1 --overwrite",
    "schema.json": "schema -o schema.json",
    "summary.json": "summary {net} --json summary.json",
    "bench.json": "bench {net} --engine openvino --size 8x8 --repeats 1 --json bench.json",
    "large.png": "upscale {photo} -m {net} -o large.png --threads 1",
    "equalized.pth": "equalize -opt {yaml} -o equalized.pth --iterations 1 --count 1 --size 8",
    "found/measurements.json": "search -opt {yaml} --max-size 0.016 --bits 8 4 --count 1 --size 8 -o found",
    "found/bits.json": "search -opt {yaml} --max-size 0.016 --bits 8 4 --count 1 --size 8 -o found",
    "found/pareto.png": "search -opt {yaml} --max-size 0.016 --bits 8 4 --count 1 --size 8 -o found",
}
NOT_KILLED = ("bench.json", "large.png", "found/pareto.png")  # engines have threads; the last is one of four files


@pytest.fixture
def run(photo_folders: Path, work_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that runs the command which writes a file, in a folder."""
    pytest.importorskip("openvino")
    float_file = float_checkpoint(tmp_path / "float.pth")
    names = {
        "net": shutil.copy(REPOSITORY / "tests" / "data" / "checkpoint_v1.pth", tmp_path / "net.pth"),
        "float": float_file,
        "photo": photo_folders / "HR" / "coffee.png",
        "yaml": write_yaml(tmp_path / "o.yml", train_options(photo_folders, float_file)),
    }

    def run_in(folder: Path, written: str) -> None:
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            main([word.format(**names) for word in COMMANDS[written].split()])

    return run_in


def old_file(folder: Path, written: str) -> Path:
    path = folder / written
    path.parent.mkdir(exist_ok=True)
    path.write_text("old")
    return path


@pytest.mark.parametrize("written", [name for name in COMMANDS if name != "found/bits.json"])
def test_full_and_read_only(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str], written: str
) -> None:
    with disk(tmp_path / "disk") as folder:
        old = old_file(folder, written)
        fill(folder, 8192 if written == "found/pareto.png" else 0)
        with pytest.raises(SystemExit) as ended:
            run(folder, written)
        line = capsys.readouterr().err.splitlines()[-1]
        assert ended.value.code == 2 and line.startswith("srq: error: '") and "No space left on device" in line, line
        assert old.read_text() == "old" and not list(folder.rglob(".*.part"))
        (folder / "ballast").unlink()
        with read_only(folder), pytest.raises(SystemExit) as ended:
            run(folder, written)
        line = capsys.readouterr().err.splitlines()[-1]
        assert (
            ended.value.code == 2
            and "Read-only file system" in line
            and line.endswith(" on a disk that is not read-only")
        )
        assert old.read_text() == "old" and not list(folder.rglob(".*.part"))


@pytest.mark.processes
@pytest.mark.parametrize("written", [name for name in COMMANDS if name not in NOT_KILLED])
def test_killed_before_the_file_has_its_name(run: Callable[..., None], tmp_path: Path, written: str) -> None:
    """All of it is written by then, under another name; the same command ends well afterwards."""
    old = old_file(tmp_path, written)

    def killed() -> None:
        replace = os.replace

        def die_or_replace(source: Any, target: Any) -> None:
            if Path(target).name == old.name:
                die()
            replace(source, target)

        os.replace = die_or_replace
        run(tmp_path, written)

    assert forked(killed) == [-signal.SIGKILL]
    assert old.read_text() == "old"
    assert forked(lambda: run(tmp_path, written)) == [0]
    assert old.read_bytes() != b"old"
