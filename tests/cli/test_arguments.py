"""Wrong arguments, option files and checkpoints given to the commands: status 2 and one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from srq_nni.cli.main import main
from tests.sr_data import REPOSITORY, changed, float_checkpoint, train_options, write_yaml


@pytest.fixture
def options(photo_folders: Path, tmp_path: Path) -> dict[str, Any]:
    return train_options(photo_folders, float_checkpoint(tmp_path / "EDSR_float.pth"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n- b\n", "holds no mapping"),
        ("a: [1\n", "is not plain YAML"),
        ("name: !!python/object/apply:os.system ['touch trace']\n", "is not plain YAML"),
        ("", "holds no mapping"),
    ],
)
def test_a_wrong_option_file_is_one_line(refused: Callable[..., str], tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "o.yml").write_text(text)
    for command in ("train", "test"):
        assert expected in refused(command, "-opt", str(tmp_path / "o.yml"))


def test_other_wrong_arguments(options: dict[str, Any], refused: Callable[..., str], tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "train.yml", options)
    assert "did you mean 'train.yml'?" in refused("train", "-opt", str(tmp_path / "trian.yml"))
    assert refused("trian") == "command 'trian' is not known; allowed are " + ", ".join(commands()) + (
        "; did you mean 'train'?"
    )
    assert "no block 'quantisation'" in refused("train", "-opt", path, "--force_yml", "quantisation:bits=2")
    assert "is not KEY:KEY=VALUE" in refused("train", "-opt", path, "--force_yml", "bits")
    assert "bits: 16 is not a bit width" in refused("train", "-opt", path, "--force_yml", "quantization:bits=16")


def commands() -> list[str]:
    from srq_nni.cli.main import COMMANDS

    return list(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train"], "train: the following arguments are required: -opt; srq train --help shows what is allowed"),
        (["test"], "test: the following arguments are required: -opt; srq test --help shows what is allowed"),
        (["train", "-opt"], "train: argument -opt: expected one argument; srq train --help shows what is allowed"),
        (["train", "-opt", "x", "-y"], "train: unrecognized arguments: -y; srq train --help shows what is allowed"),
        (
            ["train", "-opt", "x", "--auto-resume"],
            "unrecognized arguments: --auto-resume; did you mean '--auto_resume'?",
        ),
        (["train", "-opt", "x", "--auto"], "train: unrecognized arguments: --auto"),
        (["train", "-opt", "x", "--launcher", "mpi"], "train: argument --launcher: invalid choice: 'mpi' (choose from"),
        (["export", "x.pth"], "export: the following arguments are required: -o/--output; srq export --help"),
        (["schema", "x"], "schema: unrecognized arguments: x; did you mean '-o x'?; srq schema --help shows what is"),
        (["report"], "report: the following arguments are required: experiment; srq report --help"),
        (
            ["report", "x", "--images", "many"],
            "report: argument --images: invalid int value: 'many'; srq report --help",
        ),
    ],
)
def test_wrong_arguments_are_one_line(refused: Callable[..., str], arguments: list[str], expected: str) -> None:
    assert expected in refused(*arguments)


def test_debug_shows_the_traceback(options: dict[str, Any], work_folder: Path, tmp_path: Path) -> None:
    from srq_nni.errors import OptionError

    path = write_yaml(tmp_path / "o.yml", changed(options, "quantization:bits", 9))
    with pytest.raises(OptionError, match="bits: 9"):
        main(["train", "-opt", path, "--debug"])


def test_help_version_and_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    import srq_nni

    for arguments, status in ([], 2), (["--help"], 0), (["-h"], 0):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == status
        shown = capsys.readouterr().out
        assert all(command in shown for command in commands())
    main(["--version"])
    assert capsys.readouterr().out == f"srq {srq_nni.__version__}\n"


def test_a_process_ends_with_one_line_as_well(tmp_path: Path) -> None:
    """Nothing that is printed while importing or warning gets between the user and the sentence."""
    (tmp_path / "o.yml").write_text(yaml.safe_dump({"name": "x"}))
    done = subprocess.run(
        [sys.executable, "-m", "srq_nni", "train", "-opt", "o.yml"],
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert done.stderr == "srq: error: key 'model_type' is missing; add it, as in the files of basicsr_configs/\n"
    assert [file.name for file in tmp_path.iterdir()] == ["o.yml"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{quantized}", "-o", "no/m.onnx"], "the folder 'no' of 'no/m.onnx' does not exist; create it first"),
        (["{quantized}", "-o", "."], "'.' is a folder; give the name of a file in it"),
        (["{quantized}", "-o", "m.onnx", "--engine", "openvno"], "did you mean 'openvino'?"),
        (
            ["{float}", "-o", "m.onnx"],
            "does not say which network it is; give a quantized one that srq train wrote",
        ),
        (
            ["{text}", "-o", "m.onnx"],
            "cannot be read (it is damaged, no file of torch.save, or holds more than tensors)",
        ),
        (["nope.pth", "-o", "m.onnx"], "checkpoint 'nope.pth' does not exist"),
    ],
)
def test_a_wrong_export_is_one_line(
    refused: Callable[..., str], tmp_path: Path, arguments: list[str], expected: str
) -> None:
    pytest.importorskip("onnx")
    text = tmp_path / "text.pth"
    text.write_text("hello")
    files = {
        "quantized": Path(__file__).parents[1] / "data/checkpoint_v1.pth",
        "float": float_checkpoint(tmp_path / "float.pth"),
        "text": text,
    }
    assert expected in refused("export", *(argument.format(**files) for argument in arguments))
