"""The estimate of the time of a training: the model that will train, its phases, and no file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.utils import logger as basicsr_logger

from srq_nni.summary import summarize_options
from srq_nni.summary.probe import NotMeasured, PhaseTime, TrainingTime, probe_training
from tests.sr_data import Missing, changed, train_options, write_yaml


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """Options of a training whose weights and images do not exist."""
    return train_options(tmp_path / "no_images", str(tmp_path / "no_weights.pth"))


def test_a_training_is_its_phases(options: dict[str, Any], work_folder: Path) -> None:
    options["train"]["total_iter"] = 1000
    time = probe_training(options)
    assert [(phase.name, phase.iterations) for phase in time.phases] == [("calibrate", 2), ("final", 998)]
    assert all(phase.seconds > 0 for phase in time.phases)
    assert time.seconds == pytest.approx(2 * time.phases[0].seconds + 998 * time.phases[1].seconds)
    assert (time.device, time.batch, time.measured) == ("cpu", 2, 2)


def test_ddtb_observes_first_and_gates_join(options: dict[str, Any], work_folder: Path) -> None:
    options["quantization"] = {"quantizer": "ddtb", "bits": 4, "calibration_iters": 5, "static_iters": 7}
    options["train"]["total_iter"] = 100
    phases = [(phase.name, phase.iterations) for phase in probe_training(options).phases]
    assert phases == [("observe", 5), ("static", 7), ("final", 88)]


def test_a_run_that_ends_early_has_no_later_phases(options: dict[str, Any], work_folder: Path) -> None:
    options["train"]["total_iter"] = 2
    assert [(phase.name, phase.iterations) for phase in probe_training(options).phases] == [("calibrate", 2)]


def test_a_batch_that_takes_too_long_is_measured_in_part(options: dict[str, Any], work_folder: Path) -> None:
    options["datasets"]["train"]["batch_size_per_gpu"] = 64
    time = probe_training(options, patience=0.0)
    assert (time.batch, time.measured) == (64, 1)
    whole = TrainingTime((PhaseTime("train", 10, 64.0),), "cpu", 64, 1)
    assert whole.seconds == 640


def test_a_float_model_has_one_phase(options: dict[str, Any], work_folder: Path) -> None:
    options = changed(changed(options, "model_type", "SRModel"), "quantization", Missing)
    options["train"]["skt_opt"] = None
    assert [(phase.name, phase.iterations) for phase in probe_training(options).phases] == [("train", 6)]


def test_nothing_is_left_behind(options: dict[str, Any], work_folder: Path) -> None:
    """No file, no log handler that a pipeline would find open, no random number drawn, no option changed."""
    before, random = repr(options), torch.random.get_rng_state()
    handlers, loggers = list(logging.getLogger("basicsr").handlers), dict(basicsr_logger.initialized_logger)
    probe_training(options)
    assert repr(options) == before and torch.equal(torch.random.get_rng_state(), random)
    assert logging.getLogger("basicsr").handlers == handlers
    assert basicsr_logger.initialized_logger == loggers
    assert logging.root.manager.disable == 0
    assert not list(work_folder.rglob("*"))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("train", Missing, "the options have no 'train' and 'datasets: train' with a gt_size"),
        ("datasets:train:gt_size", Missing, "the options have no 'train' and 'datasets: train' with a gt_size"),
        ("train:perceptual_opt", {"type": "PerceptualLoss"}, "perceptual_opt would read or fetch the weights of a VGG"),
        ("train:total_iter", "many", "a step of QuantSRModel failed (invalid literal for int"),
        ("train:optim_g:type", "Adm", "a step of QuantSRModel failed (optimizer Adm is not"),
    ],
)
def test_what_cannot_be_measured_is_a_note(
    options: dict[str, Any], tmp_path: Path, work_folder: Path, key: str, value: Any, reason: str
) -> None:
    options = changed(options, key, value)
    with pytest.raises(NotMeasured) as given:
        probe_training(options)
    assert str(given.value).startswith(reason)
    if key == "train":
        summary = summarize_options(write_yaml(tmp_path / "o.yml", options), measure_training=True)
        assert f"note: the time of the training was not measured: {reason}" in summary.notes


def test_the_table_shows_the_time(options: dict[str, Any], tmp_path: Path, work_folder: Path) -> None:
    summary = summarize_options(write_yaml(tmp_path / "o.yml", options), measure_training=True)
    assert summary.training is not None
    line = next(line for line in str(summary).splitlines() if line.startswith("training"))
    assert line.startswith("training    about ") and "on cpu (calibrate 2 x " in line and "final 4 x " in line
