"""What a newcomer types: the wrong kind of file, a flag of another tool, a result in place of what it is made from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from srq_nni.cli.main import main
from srq_nni.errors import did_you_mean
from tests.sr_data import REPOSITORY, float_checkpoint, train_options, write_yaml

ITSELF = "is the file that is read; give another name to write to"
WRONG = {
    # a file without its flag, and flags of other tools
    "train train.yml": "are required: -opt; did you mean '-opt train.yml'?; srq train --help shows what is allowed",
    "test train.yml --auto_resume": "are required: -opt; did you mean '-opt train.yml'?",
    "schema schema.json": "unrecognized arguments: schema.json; did you mean '-o schema.json'?",
    "train -opt train.yml --gpu 0": "unrecognized arguments: --gpu 0; srq train --help shows what is allowed",
    "train -opt train.yml --auto": "unrecognized arguments: --auto; did you mean '--auto_resume'?",
    "test -opt train.yml --force-yml scale=4": "--force-yml scale=4; did you mean '--force_yml'?",
    "search -opt train.yml --max_loss=1": "unrecognized arguments: --max_loss=1; did you mean '--max-loss'?",
    "summary -opt train.yml --bits 3": "unrecognized arguments: --bits; srq summary --help",
    "upscale a.png b.png -m net.onnx -o x.png": "unrecognized arguments: b.png; srq upscale --help",
    # another kind of file
    "train -opt folder": "option file 'folder' is a folder; give the path of a YAML file in it",
    "train -opt net.pth": "option file 'net.pth' is not text; give a YAML file in UTF-8",
    "train -opt notes.txt": "option file 'notes.txt' holds no mapping (lines of KEY: VALUE); start from a file in",
    "summary train.yml": "'train.yml' is an option file; write -opt train.yml",
    "export folder -o m.onnx": "checkpoint 'folder' is a folder; give the path of a .pth file in it",
    "export net.onnx -o m.onnx": "checkpoint 'net.onnx' cannot be read (it is an ONNX file); give a file of tensors",
    "pack train.yml -o m.safetensors": "checkpoint 'train.yml' cannot be read (it is an option file); give a file of",
    "report net.pth": "experiment 'net.pth' is a file; give the folder of a run, such as experiments/NAME",
    "export net.pth -o m.onnx --engine OpenVINO": "one of openvino, onnxruntime, tensorrt; did you mean 'openvino'?",
    "train -opt train.yml --force_yml val:metrics:psnr:type=psnr": "did you mean 'calculate_psnr'?",
    "train -opt train.yml --force_yml bits=3": "key 'bits' has no effect outside the blocks; move it into 'quantiz",
    "train -opt train.yml --force_yml quantization:quantizer=ddtb quantization:calibration_iters=6": (
        "train: total_iter: 6 ends with the calibration (quantization: calibration_iters: 6), which only observes; give"
    ),
    # a result that would replace what it is made from
    "export net.pth -o net.pth": f"'net.pth' {ITSELF}",
    "export net.pth -o link.onnx": f"'link.onnx' {ITSELF}",
    "pack net.pth -o net.pth": f"'net.pth' {ITSELF}",
    "convert net.pth -o net.pth --to pams": f"'net.pth' {ITSELF}",
    "summary net.json --json net.json": f"'net.json' {ITSELF}",
    "bench net.json --json net.json": f"'net.json' {ITSELF}",
    "equalize -opt train.yml -o float.pth": f"'float.pth' {ITSELF}",
    "equalize -opt train.yml -o train.yml": f"'train.yml' {ITSELF}",
    "search -opt small/train.yml --max-size 1 -o small": f"'small/train.yml' {ITSELF}",
    "schema -o train.yml": "'train.yml' does not end with .json; give a name that does, such as 'train.yml.json'",
    "export net.pth -o m": "'m' does not end with .onnx; give a name that does, such as 'm.onnx'",
    "pack net.pth -o m.pth": "'m.pth' does not end with .safetensors; give a name that does",
    # before an hour of work, and not after it
    "bench net.pth --json folder": "'folder' is a folder; give the name of a file in it, such as 'folder/model.json'",
    "bench net.pth --json no/b.json": "the folder 'no' of 'no/b.json' does not exist; create it first",
    "bench net.pth --threads -1": "--threads: -1 is not allowed; give a number from 1, or 0 for the engine's choice",
    # one image, one line
    "upscale notes.txt -m net.pth -o x.png": "'notes.txt' is no image that Pillow can read; give a PNG, JPEG, WebP,",
    "upscale a.png -m net.pth -o x.pgn": "'x.pgn' has no known ending; give one of .png, .jpg, .jpeg, .webp, .tif",
}


@pytest.fixture
def here(work_folder: Path, photo_folders: Path) -> None:
    """Files of every kind in the working directory."""
    shutil.copy(REPOSITORY / "tests" / "data" / "checkpoint_v1.pth", "net.pth")
    shutil.copy(photo_folders / "HR" / "astronaut.png", "a.png")
    Path("link.onnx").symlink_to("net.pth")
    for name in ("folder", "small"):
        Path(name).mkdir()
    for name, text in (("net.onnx", "x"), ("net.json", "{}"), ("notes.txt", "some notes\n")):
        Path(name).write_text(text)
    options = train_options(photo_folders, float_checkpoint(Path("float.pth")))
    write_yaml(Path("train.yml"), options)
    write_yaml(Path("small/train.yml"), options)


@pytest.mark.parametrize("command", WRONG)
def test_the_line_helps(here: None, refused: Callable[..., str], command: str) -> None:
    pytest.importorskip("openvino")
    assert WRONG[command] in refused(*command.split())


def test_warnings_have_the_form_of_a_command_s(here: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Once a network, and not once an image."""
    pytest.importorskip("openvino")
    Path("in").mkdir()
    for name in "bc":
        shutil.copy("a.png", f"in/{name}.png")
    main(["upscale", "in", "-m", "net.pth", "-o", "out", "--tile", "48", "--overlap", "1", "--threads", "1"])
    assert capsys.readouterr().err == "srq: warning: overlap 1 is below 6, what a pixel sees: seams are possible\n"
    options = ["quantization:calibration_iters=9"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("basicsr.train.train_pipeline", lambda root: None)
        main(["train", "-opt", "train.yml", "--force_yml", *options])
    assert capsys.readouterr().err == (
        "srq: warning: train: total_iter: 6 ends with the calibration (quantization: calibration_iters: 9), so the "
        "bounds never train\n"
    )


@pytest.mark.parametrize(
    ("given", "allowed", "meant"),
    [
        ("EDRS", ("EDVR", "EDSR"), "EDSR"),
        ("edsr", ("RDN", "PAMS_EDSR", "EDSR"), "EDSR"),
        ("psnr", ("calculate_psnr_of_y", "calculate_psnr"), "calculate_psnr"),
        ("gpu", ("help", "launcher"), None),
    ],
)
def test_did_you_mean(given: str, allowed: tuple[str, ...], meant: str | None) -> None:
    assert did_you_mean(given, allowed) == (f"; did you mean '{meant}'?" if meant else "")
