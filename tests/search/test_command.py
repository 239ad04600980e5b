"""``srq search``: one sentence for each wrong input, a warning on benchmarks, and a search that is stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srq_nni.cli.main import main
from srq_nni.search.measure import Measurer
from tests.search.conftest import options_for
from tests.sr_data import Missing, changed, float_checkpoint, write_yaml
from tests.terminals import standard_error

WRONG: list[tuple[list[str], str]] = [
    ([], "srq search wants one limit; give --max-loss dB, --max-size MB or --max-bops T"),
    (["--max-loss", "0.1", "--max-size", "1"], "srq search wants one limit; give --max-loss dB, --max-size MB or"),
    (["--max-loss", "0"], "--max-loss 0 is not allowed; give a number above 0"),
    (["--max-size", "-1"], "--max-size -1 is not allowed; give a number above 0"),
    (["--max-bops", "nan"], "--max-bops nan is not allowed; give a number above 0"),
    (["--max-size", "1", "--saving", "size"], "--saving has no meaning beside a limit of cost; leave it out, or give"),
    (["--max-loss", "1", "--bits", "8"], "--bits 8 is no choice; give at least two different widths"),
    (
        ["--max-loss", "1", "--bits", "9"],
        "--bits: 9 is not a bit width that can be quantized to; give an integer from 2 to 8",
    ),
    (["--max-loss", "1", "--bits", "8", "8"], "--bits 8 8 is no choice; give at least two different widths"),
    (["--max-loss", "1", "--bits", "16", "8"], "--bits: 16 is not a bit width that can be quantized to"),
    (["--max-loss", "1", "--images", "val"], "datasets: there is no 'val' to measure on; give --images one of: train"),
    (["--max-loss", "1", "--size", "2"], "--size 2 leaves no pixel inside the border of 2; give a greater size"),
    (["--max-loss", "1", "--count", "0"], "--count 0 is not allowed; give a number from 1"),
    (["--max-loss", "1", "--nni-listen-anyway"], "--nni-listen-anyway has no meaning without --nni; leave it out"),
    (["--max-loss", "1", "--nni", "no.yml"], "--nni no.yml: it is no YAML file; give local, or a file with a training"),
    (["--max-loss", "1", "--nni", "o.yml"], "--nni o.yml: it names no platform; give NNI's trainingService block"),
    (
        ["--max-loss", "1", "--nni", "remote.yml"],
        "--nni remote.yml: trials on 'remote' have to reach NNI's manager, whose portal has no password and would "
        "listen on every interface; give --nni-listen-anyway behind a firewall, or --nni local",
    ),
]
WRONG_OPTIONS: list[tuple[str, Any, str]] = [
    ("quantization", Missing, "key 'quantization' is missing; add it with quantizer and bits"),
    ("quantization:quantizer", "pms", "did you mean 'pams'?"),
    ("path:pretrain_network_g", None, "path: pretrain_network_g is missing; give float weights of network_g"),
    ("path:pretrain_network_g", "no.pth", "checkpoint 'no.pth' does not exist; give the path of a .pth file"),
    ("path:pretrain_network_g", "other.pth", "checkpoint 'other.pth' does not fit the network"),
    ("datasets:train:dataroot_lq", "nowhere", "datasets: train: its images cannot be read ("),
    ("datasets:train:type", "SingleImageDataset", "datasets: train: type 'SingleImageDataset' has no pairs; give a"),
    ("scale", "two", "scale: 'two' is not allowed; give the whole number that network_g enlarges by"),
    (
        "quantization",
        {"quantizer": "pams", "bits": 4, "profile": "official"},
        "quantization: student: random trains other weights than the float ones that a search measures; give "
        "student: float beside profile: official",
    ),
    (
        "quantization",
        {"quantizer": "ddtb", "bits": 4, "profile": "official"},
        "quantization: calibration: official leaves the bounds of ddtb at +-10 until training, so losses before it say "
        "nothing about bits; give calibration: mse or percentile beside profile: official",
    ),
    (
        "quantization",
        {"quantizer": "pams", "bits": 4, "student": "random"},
        "quantization: student: random trains other weights than the float ones that a search measures; give "
        "student: float",
    ),
    (
        "network_g:type",
        "PAMS_EDSR",
        "quantization: network_g: type PAMS_EDSR says already what is quantized; delete the block, or give type: EDSR",
    ),
    ("network_g:type", "EDRS", "did you mean 'EDSR'?"),
]


@pytest.fixture
def refused(work_folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs ``srq search -opt o.yml`` and returns the one sentence it ends with."""

    def run(*arguments: str) -> str:
        before = sorted(work_folder.rglob("*"))
        with pytest.raises(SystemExit) as ended:
            main(["search", "-opt", "o.yml", *arguments])
        captured = capsys.readouterr()
        assert (ended.value.code, captured.out) == (2, "")
        assert captured.err.startswith("srq: error: ") and captured.err.count("\n") == 1, captured.err
        assert sorted(work_folder.rglob("*")) == before, "something was written"
        return captured.err.removeprefix("srq: error: ").rstrip("\n")

    return run


@pytest.mark.parametrize(("arguments", "expected"), WRONG)
def test_wrong_arguments_are_one_sentence(
    refused: Callable[..., str],
    work_folder: Path,
    crops: Path,
    arguments: list[str],
    expected: str,
) -> None:
    write_yaml(work_folder / "o.yml", options_for(crops))
    write_yaml(work_folder / "remote.yml", {"trainingService": {"platform": "remote"}})
    assert expected in refused(*arguments)


@pytest.mark.parametrize(("key", "value", "expected"), WRONG_OPTIONS)
def test_wrong_options_are_one_sentence(
    refused: Callable[..., str],
    work_folder: Path,
    crops: Path,
    key: str,
    value: Any,
    expected: str,
) -> None:
    float_checkpoint(work_folder / "other.pth")
    write_yaml(work_folder / "o.yml", changed(options_for(crops), key, value))
    assert expected in refused("--max-loss", "1")


def test_an_edited_file_is_not_written_over(
    refused: Callable[..., str], work_folder: Path, crops: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_yaml(work_folder / "o.yml", options_for(crops))
    arguments = ["-o", "found", "--max-size", "0.25", "--bits", "8", "3", "--count", "1", "--size", "12"]
    for _ in range(2):  # its own files it may replace
        main(["search", "-opt", "o.yml", *arguments])
    capsys.readouterr()
    block = work_folder / "found" / "quantization.yml"
    edited = block.read_text() + "# mine\n"
    block.write_text(edited)
    assert refused(*arguments) == (
        "'found/quantization.yml' is not as a search wrote it and would be lost; move it away, or give another folder "
        "with -o"
    )
    assert block.read_text() == edited
    block.unlink()
    (work_folder / "found" / "train.yml").write_text("name: mine\n")
    assert refused(*arguments).startswith("'found/train.yml' is not as a search wrote it")


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize(
    ("limit", "checks"), [("--max-size 0.25", "0/15"), ("--max-loss 9", "0/26")]
)  # two widths, and what the mending of each may take at most
def test_bars(
    work_folder: Path, crops: Path, monkeypatch: pytest.MonkeyPatch, limit: str, checks: str, is_terminal: bool
) -> None:
    write_yaml(work_folder / "o.yml", options_for(crops))
    command = f"search -opt o.yml {limit} --bits 8 3 --count 1 --size 12"
    with standard_error(monkeypatch, is_terminal=is_terminal) as screen:
        main(command.split())
    if is_terminal:
        assert screen.shows("Quantizing one convolution at a time:", "0/20", "<", "measurement")
        assert screen.shows("Checking whole assignments:", checks, "<", "assignment")
    else:
        assert screen.text == ""


def test_a_stopped_search_says_how_to_go_on_and_does(
    work_folder: Path,
    crops: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also: images on which results are published are named in a warning."""
    options = options_for(crops)
    options["datasets"]["train"]["name"] = "Set5"
    write_yaml(work_folder / "o.yml", options)
    command = ["search", "-opt", "o.yml", "--max-size", "0.25", "--bits", "8", "3", "--count", "1", "--size", "12"]
    measure = Measurer._measure
    left = [6]

    def stopping(self: Measurer) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return measure(self)

    monkeypatch.setattr(Measurer, "_measure", stopping)
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 130
    kept = work_folder / "search" / "small" / "measurements.json"
    told = capsys.readouterr().err
    assert "srq: warning: bits are being chosen on Set5, on which results are published" in told
    assert told.endswith("srq: stopped; the same command goes on from search/small/measurements.json\n")
    before = kept.read_bytes()
    monkeypatch.setattr(Measurer, "_measure", measure)
    main(command)
    out = capsys.readouterr().out
    assert "train: srq train -opt search/small/train.yml" in out
    assert kept.read_bytes().startswith(before[: before.rindex(b"]]}")])  # five were not measured again
    names = {"measurements.json", "quantization.yml", "train.yml", "bits.json", "pareto.png"}
    assert {file.name for file in kept.parent.iterdir()} == names
