"""``srq equalize``: what it writes trains; one sentence for each wrong input; nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import build_float
from srq_nni.cli.main import main
from srq_nni.models import equalized_weights
from srq_nni.models.equalized_weights import equalize_weights, settings_to_train
from tests.search.conftest import NETWORK, WEIGHTS, options_for
from tests.sr_data import Missing, changed, write_yaml

TEACHER = {"pretrain_network_g": str(WEIGHTS), "pretrain_network_t": str(WEIGHTS)}
QUICK = ["--iterations", "2", "--count", "4", "--size", "16"]
WRONG: list[tuple[list[str], str]] = [
    (["--iterations", "-1"], "iterations: -1 is not allowed; give a number from 0"),
    (["--count", "0"], "--count 0 is not allowed; give a number from 1"),
    (["--images", "val"], "datasets: there is no 'val' to measure on; give --images one of: train"),
    (["--untraind"], "equalize: unrecognized arguments: --untraind; did you mean '--untrained'?"),
    (["-o", "nowhere/out.pth"], "the folder 'nowhere' of 'nowhere/out.pth' does not exist; create it first"),
    (["-o", str(WEIGHTS)], f"'{WEIGHTS}' is the file that is read; give another name to write to"),
]
WRONG_OPTIONS: list[tuple[str, Any, str]] = [
    (
        "quantization",
        Missing,
        "key 'quantization' is missing; add it with quantizer and bits: they say what is",
    ),
    ("quantization:bits", 9, "quantization: bits: 9 is not a bit width"),
    (
        "path:pretrain_network_g",
        None,
        "path: pretrain_network_g is missing; give float weights of network_g, which",
    ),
    ("path:pretrain_network_g", "no.pth", "checkpoint 'no.pth' does not exist; give the path of a .pth file"),
    (
        "quantization",
        {"quantizer": "pams", "bits": 4, "profile": "official"},
        "quantization: student: random trains other weights than the float ones that are equalized; give student: "
        "float beside profile: official",
    ),
    ("network_g", {**NETWORK, "type": "EDR"}, "network_g: type 'EDR' is not known; give a registered network; did you"),
]


def with_skt(crops: Path, quantizer: str = "ddtb") -> dict[str, Any]:
    """Return options that train for two iterations at 8 bits, SKT among the losses."""
    options = changed(options_for(crops, quantizer), "path", TEACHER)
    options["quantization"] |= {"bits": 8}
    options["train"] |= {"skt_opt": {"type": "SKTLoss", "loss_weight": 3.92}}
    return options


def test_what_it_writes_trains_with_the_command_it_prints(
    crops: Path, work_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = write_yaml(work_folder / "my.yml", with_skt(crops))

    main(["equalize", "-opt", options, "-o", "equalized.pth", *QUICK])

    first, wrote, train = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "spaces with another basis: 1, with other factors: 5; with the noise of rounding the output"
    )
    assert wrote == "wrote equalized.pth"
    command = f"srq train -opt {options} --force_yml path:pretrain_network_g=equalized.pth"
    assert train == f"train: {command} path:pretrain_network_t=equalized.pth"
    main(train.split()[2:])
    assert (work_folder / "experiments" / "small" / "models" / "net_g_latest.pth").is_file()


def test_the_weights_are_those_of_the_same_function(crops: Path, tmp_path: Path) -> None:
    equalize_weights(with_skt(crops), tmp_path / "out.pth", iterations=1, count=4, size=16)

    outputs, weights = [], []
    for file in (WEIGHTS, tmp_path / "out.pth"):
        model = build_float(NETWORK).eval()
        checkpoint.load_weights(model, file)
        with torch.no_grad():
            outputs.append(model(torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(1))))
        weights.append(model.body[0].conv1.weight)
    assert torch.allclose(*outputs, atol=1e-5)
    assert not torch.allclose(*weights, atol=1e-2)


def test_a_teacher_is_named_where_its_features_are_compared(crops: Path) -> None:
    options = with_skt(crops)

    both = ["path:pretrain_network_g=e.pth", "path:pretrain_network_t=e.pth"]
    assert settings_to_train(options, "e.pth") == both
    assert settings_to_train(options | {"network_t": NETWORK}, "e.pth") == both[:1]
    assert settings_to_train(options | {"train": {"distill_opt": {"type": "L1Loss"}}}, "e.pth") == both[:1]


def test_images_of_several_sizes_make_several_batches(
    crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(equalized_weights, "BATCH", 2)
    sizes = [8, 10, 8, 8, 10]

    batches = equalized_weights._batches([torch.zeros(1, 3, size, 8) for size in sizes])

    assert [tuple(batch.shape) for batch in batches] == [(2, 3, 8, 8), (1, 3, 8, 8), (2, 3, 10, 8)]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(case[0])[-24:] for case in WRONG])
def test_wrong_arguments(
    arguments: list[str], message: str, crops: Path, work_folder: Path, refused: Callable[..., str]
) -> None:
    file = write_yaml(work_folder / "my.yml", with_skt(crops))

    assert refused("equalize", "-opt", file, "-o", "out.pth", *QUICK, *arguments).startswith(message)


@pytest.mark.parametrize(("key", "value", "message"), WRONG_OPTIONS, ids=[case[2][:30] for case in WRONG_OPTIONS])
def test_wrong_options(
    key: str, value: Any, message: str, crops: Path, work_folder: Path, refused: Callable[..., str]
) -> None:
    file = write_yaml(work_folder / "my.yml", changed(options_for(crops, "ddtb"), key, value))

    assert refused("equalize", "-opt", file, "-o", "out.pth", *QUICK).startswith(message)


def test_a_file_from_before_stays_when_the_search_is_stopped(
    crops: Path, work_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_yaml(work_folder / "my.yml", with_skt(crops))
    (work_folder / "out.pth").write_bytes(b"before")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(equalized_weights, "equalize", stop)
    with pytest.raises(SystemExit) as ended:
        main(["equalize", "-opt", file, "-o", "out.pth", *QUICK])

    assert ended.value.code == 130
    assert (work_folder / "out.pth").read_bytes() == b"before"
