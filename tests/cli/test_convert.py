"""``srq convert`` as a user types it: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from srq_nni.cli.main import main
from srq_nni.compression.options import options_from
from tests.conversion.converting import equal, photograph, saved
from tests.conversion.released import Released
from tests.conversion.states import released


@pytest.fixture
def network() -> Released:
    return released("edsr", "ddtb", photograph(), gated=True)


@pytest.fixture
def refused(work_folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs ``srq convert``, checks that it ended with status 2, and returns its one line."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["convert", *arguments])
        captured = capsys.readouterr()
        assert ended.value.code == 2 and captured.out == "" and not list(work_folder.iterdir())
        assert captured.err.startswith("srq: error: ") and captured.err.count("\n") == 1
        return captured.err.removeprefix("srq: error: ").rstrip("\n")

    return run


def test_there_and_back(
    network: Released, work_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(saved(network, tmp_path / "model_best.pth.tar"))
    main(["convert", path, "-o", "student.pth", "--from", "ddtb", "--bits", "4"])
    first, note, *blocks = capsys.readouterr().out.splitlines()
    assert first == f"student.pth: EDSR, DDTB student, {len(network.state)} tensors from ddtb"
    assert note.startswith("note: res_scale is not in the file: 1 is EDSR-PyTorch's default")
    options = yaml.safe_load("\n".join(blocks))  # for the user's option file
    assert options["quantization"] == {"quantizer": "ddtb", "bits": 4, "profile": "official"}
    assert options_from(options["quantization"]).wiring == "official"
    assert options["network_g"]["rgb_mean"] == [0.4488, 0.4371, 0.404]

    main(["convert", "student.pth", "-o", "back.pth.tar", "--to", "ddtb"])
    assert capsys.readouterr().out == f"back.pth.tar: EDSR, DDTB student, {len(network.state)} tensors for ddtb\n"
    assert equal(torch.load("back.pth.tar", weights_only=True)["state_dict"], network.state)
    assert sorted(file.name for file in work_folder.iterdir()) == ["back.pth.tar", "student.pth"]


def test_wrong_arguments_are_one_line(network: Released, tmp_path: Path, refused: Callable[..., str]) -> None:
    path = str(saved(network, tmp_path / "model_best.pth.tar"))
    cases = {
        (path, "-o", "o.pth", "--from", "pams", "--bits", "4"): "looks like a DDTB student; use --from ddtb",
        (path, "-o", "o.pth", "--from", "ddtb"): "does not say its bits; give --bits with the k_bits of its training",
        (path, "-o", "o.pth", "--from", "edsr"): "format 'edsr' is not known; give one of edsr-pytorch, pams, ddtb",
        (path, "-o", ".", "--from", "ddtb"): "'.' is a folder; give the name of a file in it",
        (path, "-o", "no/o.pth", "--from", "ddtb"): "the folder 'no' of 'no/o.pth' does not exist; create it first",
        (path, "-o", path, "--from", "ddtb"): "is the file that is read; give another name to write to",
        (path[:-4], "-o", "o.pth", "--from", "ddtb"): "does not exist; give the path of a .pth file",
        (path, "-o", "o.pth", "--to", "ddtb", "--bits", "4"): "--bits belongs to --from; leave it out with --to",
        (path, "-o", "o.pth", "--to", "ddtb"): "is no EDSR, RDN or SRResNet",
    }
    for arguments, expected in cases.items():
        assert expected in refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["x"], "the following arguments are required: -o/--output"),
        (["x", "-o", "y"], "one of the arguments --from --to is required"),
        (["x", "-o", "y", "--from", "pams", "--to", "pams"], "--to: not allowed with argument --from"),
        (["x", "-o", "y", "--form", "pams"], "--from"),
        (["x", "-o", "y", "--from", "pams", "--bits", "four"], "--bits: invalid int value: 'four'"),
    ],
)
def test_arguments_that_do_not_parse_are_one_line(
    refused: Callable[..., str], arguments: list[str], expected: str
) -> None:
    assert expected in refused(*arguments)
