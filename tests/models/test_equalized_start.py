"""``train: equalize_iter``: a run starts from equalized weights, its teacher too, and goes on with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.models import build_model

from srq_nni import checkpoint
from srq_nni.cli.main import main
from srq_nni.errors import CheckpointError, SRQError
from srq_nni.models import equalized_start
from srq_nni.models.equalized_start import equalized_path
from srq_nni.models.preflight import check_options
from srq_nni.summary.probe import probe_training
from tests.sr_data import Missing, changed, float_checkpoint, train_options, write_yaml

BODY = "body.0.conv1.weight"
ENTRY = {"op_names": ["body.0.conv1"], "target_names": ["_input_0", "weight"], "quant_dtype": "int8"}
RUN = Path("experiments/tiny")


@pytest.fixture
def equalizing(options: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A run with SKT that is about to build its model."""
    options["path"]["experiments_root"] = str(tmp_path)
    options["train"]["equalize_iter"] = 2
    return options


@pytest.fixture
def float_file(tmp_path: Path) -> str:
    return float_checkpoint(tmp_path / "float.pth")


def weight_in(file: str | Path) -> torch.Tensor:
    return checkpoint.read(file)["params"][BODY]


def test_network_and_teacher_start_from_what_it_writes(equalizing: dict[str, Any], tmp_path: Path) -> None:
    model = build_model(equalizing)

    written = weight_in(tmp_path / "equalized.pth")
    assert not torch.allclose(written, weight_in(equalizing["path"]["pretrain_network_g"]), atol=1e-3)
    for network in (model.net_g, model.net_g_ema, model.teacher):
        assert torch.equal(network.state_dict()[BODY], written)


def test_weights_of_other_teachers_stay(equalizing: dict[str, Any]) -> None:
    teacher = equalizing["path"]["pretrain_network_t"]
    for options in (
        changed(equalizing, "network_t", equalizing["network_g"]),
        changed(equalizing, "train:skt_opt", Missing),
    ):
        path = equalized_path(options)

        assert path["pretrain_network_t"] == teacher
        assert path["pretrain_network_g"].endswith("equalized.pth")


def test_other_processes_wait_and_read(
    equalizing: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = []
    monkeypatch.setattr(equalized_start.distributed, "barrier", lambda: waited.append(True))

    path = equalized_path({**equalizing, "dist": True, "rank": 1})

    assert waited and not (tmp_path / "equalized.pth").exists()
    assert path["pretrain_network_g"] == path["pretrain_network_t"] == str(tmp_path / "equalized.pth")
    assert path["param_key_g"] == path["param_key_t"] == "params"


def test_without_the_key_nothing_is_written(equalizing: dict[str, Any], tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())

    for value in (0, Missing):
        assert equalized_path(changed(equalizing, "train:equalize_iter", value)) == equalizing["path"]
    assert set(tmp_path.iterdir()) == before


def test_a_resumed_run_ends_as_one_that_was_never_stopped(
    photo_folders: Path, float_file: str, work_folder: Path
) -> None:
    options = train_options(photo_folders, float_file)
    options["train"]["equalize_iter"] = 2
    main(["train", "-opt", write_yaml(work_folder / "tiny.yml", options)])
    whole = weight_in(RUN / "models" / "net_g_6.pth")
    for late in (*RUN.glob("models/net_g_[6l]*"), *RUN.glob("training_states/6.state")):
        late.unlink()

    main(["train", "-opt", str(work_folder / "tiny.yml"), "--auto_resume"])

    assert torch.equal(weight_in(RUN / "models" / "net_g_6.pth"), whole)
    assert not torch.equal(whole, weight_in(RUN / "equalized.pth"))


def test_a_resumed_run_needs_the_weights_of_its_teacher(equalizing: dict[str, Any], tmp_path: Path) -> None:
    equalizing["path"]["resume_state"] = str(tmp_path / "2.state")

    with pytest.raises(CheckpointError) as error:
        equalized_path(equalizing)
    assert str(error.value) == (
        f"'{tmp_path / 'equalized.pth'}' is missing, the equalized weights that this run began with and its teacher "
        "has; put it back, or start anew"
    )
    del equalizing["train"]["skt_opt"]
    assert equalized_path(equalizing) == equalizing["path"]  # and a run without it does not


def test_measuring_the_time_of_a_training_reads_no_image(equalizing: dict[str, Any]) -> None:
    options = changed(equalizing, "datasets:train:dataroot_lq", "/nowhere")

    assert probe_training(options).phases


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train:equalize_iter", -1, "train: equalize_iter: -1 is not allowed; give a whole number from 0"),
        ("train:equalize_iter", 1.5, "train: equalize_iter: 1.5 is not allowed; give a whole number from 0"),
        ("train:equalise_iter", 9, "train: key 'equalise_iter' is not known; did you mean 'equalize_iter'?"),
        (
            "path:pretrain_network_g",
            None,
            "path: pretrain_network_g is missing; give float weights of network_g, which are equalized",
        ),
        (
            "quantization:student",
            "random",
            "quantization: student: random trains other weights than the float ones that are equalized; give student: ",
        ),
        (
            "quantization",
            {"quantizer": "pams", "config_list": [{**ENTRY, "target_names": ["weight"]}]},
            "only weights are quantized, and what rounding them costs counts for untrained networks alone; equalize ",
        ),
        (
            "quantization",
            {"quantizer": "pams", "config_list": [{**ENTRY, "op_names": ["conv_last"]}]},
            "no tensor of EDSR that is quantized may change its basis; what is between its convolutions fixes them all",
        ),
        ("datasets:train:dataroot_lq", "nowhere", "datasets: train: dataroot_lq: 'nowhere' is not a folder; "),
        ("datasets:train:type", "SingleImageDataset", "datasets: train: type 'SingleImageDataset' has no pairs; give"),
    ],
)
def test_what_a_run_refuses_before_it_starts(
    key: str, value: Any, message: str, photo_folders: Path, float_file: str
) -> None:
    options = train_options(photo_folders, float_file)
    options["train"]["equalize_iter"] = 2

    with pytest.raises(SRQError) as error:
        check_options(changed(options, key, value), is_train=True)

    assert str(error.value).startswith(message)


def test_a_quantized_checkpoint_is_none_to_equalize(equalizing: dict[str, Any], tmp_path: Path) -> None:
    model = build_model(changed(equalizing, "train:equalize_iter", 0))
    model.save_network(model.net_g, "net_g", 2)
    options = changed(equalizing, "path:pretrain_network_g", str(tmp_path / "models" / "net_g_2.pth"))

    with pytest.raises(CheckpointError, match="quantiz"):
        equalized_path(options)
