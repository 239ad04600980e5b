"""QuantSRModel through BasicSR's own classes: groups, phases, teacher, losses, EMA, saving."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.models import build_model

import srq_nni
from srq_nni import checkpoint
from srq_nni.errors import OptionError
from srq_nni.functional import skt_loss
from srq_nni.models.quant_sr_model import QuantSRModel
from srq_nni.quantization.layers import activation_quantizers, bounds_of, quantized_convolutions
from tests.models.steps import DDTB, same, state, train
from tests.sr_data import changed, float_checkpoint

# DDTB's first iterations only observe, and nobody should be warned that the scheduler steps before the optimizer.
pytestmark = pytest.mark.filterwarnings("error:Detected call of `lr_scheduler.step")


def test_losses_fall_and_bounds_move(options: dict[str, Any], batches: list[dict[str, torch.Tensor]]) -> None:
    options["train"]["optim_g"]["lr"] = 1e-3
    options["train"]["scheduler"]["milestones"] = []
    model = build_model(options)
    logs = train(model, batches, 1, 2)
    calibrated = [bound.clone() for _, quantizer in activation_quantizers(model.net_g) for bound in quantizer.bounds()]
    logs += train(model, batches, 3, 40)

    assert set(logs[0]) == {"l_pix", "l_skt"}
    assert sum(log["l_pix"] for log in logs[-4:]) < 0.8 * sum(log["l_pix"] for log in logs[:4])
    moved = [bound for _, quantizer in activation_quantizers(model.net_g) for bound in quantizer.bounds()]
    assert all(not torch.equal(before, after) for before, after in zip(calibrated, moved, strict=True))


@pytest.mark.parametrize("block", [{"quantizer": "pams", "bits": 4}, DDTB])
def test_bounds_have_a_group_of_their_own(options: dict[str, Any], block: dict[str, Any]) -> None:
    options = changed(options, "quantization", block)
    options["train"]["optim_g"]["weight_decay"] = 0.1
    model = build_model(options)
    weights, bounds, *gates = model.optimizer_g.param_groups
    expected = bounds_of(model.net_g)
    convolutions = len(list(quantized_convolutions(model.net_g)))

    assert len(expected) == (2 if block["quantizer"] == "pams" else 3) * convolutions, "with the steps of the weights"
    assert (weights["lr"], weights["weight_decay"]) == (1e-4, 0.1)
    assert (bounds["lr"], bounds["weight_decay"]) == (2e-3, 0.0)
    assert {id(p) for p in bounds["params"]} == {id(p) for p in expected}
    everything = [id(p) for group in model.optimizer_g.param_groups for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in model.net_g.parameters())
    assert [group["params"] for group in gates] == ([[]] if block["quantizer"] == "ddtb" else [])
    assert model.get_current_learning_rate()[:2] == [1e-4, 2e-3]


def test_the_official_rate_of_the_bounds(options: dict[str, Any]) -> None:
    options["quantization"] |= {"profile": "official", "student": "float"}
    assert [group["lr"] for group in build_model(options).optimizer_g.param_groups][:2] == [1e-4, 1e-2]


def test_optim_q_sets_the_rate_of_the_bounds(options: dict[str, Any]) -> None:
    options["train"]["optim_q"] = {"lr": 0.5}
    model = build_model(options)
    assert [group["lr"] for group in model.optimizer_g.param_groups] == [1e-4, 0.5]


def test_the_phase_follows_from_the_iteration_alone(
    options: dict[str, Any], batches: list[dict[str, torch.Tensor]]
) -> None:
    model = build_model(options)
    for iteration, mode in [(1, "calibrate"), (3, "quantize"), (2, "calibrate"), (1000, "quantize")]:
        model.set_phase(iteration)
        assert {quantizer.mode for _, quantizer in activation_quantizers(model.net_g)} == {mode}
    train(model, batches, 1, 5)
    assert {int(quantizer.statistic.count) for _, quantizer in activation_quantizers(model.net_g)} == {2}


def test_teacher_is_frozen_and_not_the_student(
    options: dict[str, Any], batches: list[dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    other = float_checkpoint(tmp_path / "teacher.pth", seed=5)
    model = build_model(changed(options, "path:pretrain_network_t", other))
    stored = checkpoint.read(other)["params"]
    train(model, batches, 1, 4)

    assert same(dict(model.teacher.state_dict()), stored)
    assert not model.teacher.training and not any(p.requires_grad for p in model.teacher.parameters())
    optimized = {p.data_ptr() for group in model.optimizer_g.param_groups for p in group["params"]}
    assert optimized.isdisjoint(p.data_ptr() for p in model.teacher.parameters())
    assert not torch.equal(stored["conv_first.weight"], model.net_g.state_dict()["conv_first.weight"])
    assert not list(activation_quantizers(model.teacher))


def test_skt_is_weighed_and_optional(options: dict[str, Any], batches: list[dict[str, torch.Tensor]]) -> None:
    model = build_model(options)
    features = {}
    for name, net in (("student", model.net_g), ("teacher", model.teacher)):
        keep = lambda _, args, name=name: features.update({name: args[0].detach()})  # noqa: E731
        net.upsample.register_forward_pre_hook(keep, prepend=True)  # the teacher's pass ends there
    first = train(model, batches, 1, 1)[0]
    assert first["l_skt"] == pytest.approx(3.92 * float(skt_loss(features["student"], features["teacher"])), rel=1e-5)
    assert first["l_skt"] > 0

    heavy = train(build_model(changed(options, "train:skt_opt:loss_weight", 39.2)), batches, 1, 1)[0]
    assert heavy["l_skt"] == pytest.approx(10 * first["l_skt"], rel=1e-5)
    assert heavy["l_pix"] == first["l_pix"]

    del options["train"]["skt_opt"], options["path"]["pretrain_network_t"]
    plain = build_model(options)
    assert plain.teacher is None
    assert set(train(plain, batches, 1, 1)[0]) == {"l_pix"}


def test_ema_follows_the_gates(options: dict[str, Any], batches: list[dict[str, torch.Tensor]]) -> None:
    """What validation sees during training is what the saved average computes when it is loaded."""
    model = build_model(changed(options, "quantization", DDTB))
    train(model, batches, 1, 6)
    model.save(0, 6)
    model.feed_data(batches[0])
    model.test()
    loaded = srq_nni.load(Path(options["path"]["models"]) / "net_g_6.pth")
    gated = [quantizer for _, quantizer in activation_quantizers(loaded) if quantizer.gate is not None]
    assert len(gated) == 1 and bool(gated[0].gate_is_applied)
    with torch.no_grad():
        assert torch.equal(model.output, loaded(batches[0]["lq"]))


def test_validation_leaves_the_training_state_alone(
    options: dict[str, Any], batches: list[dict[str, torch.Tensor]]
) -> None:
    for block in (options["quantization"], DDTB):
        model = build_model(changed(changed(options, "train:ema_decay", 0), "quantization", block))
        train(model, batches, 1, 1)
        before = state(model)
        model.feed_data(batches[1])
        model.test()
        assert same(state(model), before)
        assert model.net_g.training


def test_files_say_what_they_are(options: dict[str, Any], batches: list[dict[str, torch.Tensor]]) -> None:
    model = build_model(options)
    train(model, batches, 1, 3)
    model.save(0, 3)
    model.save(-1, -1)
    folder = Path(options["path"]["models"])
    assert sorted(file.name for file in folder.iterdir()) == ["net_g_3.pth", "net_g_latest.pth"]
    assert [file.name for file in Path(options["path"]["training_states"]).iterdir()] == ["3.state"]

    content = torch.load(folder / "net_g_3.pth", weights_only=True)
    assert set(content) == {"params", "params_ema", "srq"}
    assert content["srq"]["network"] == options["network_g"]
    written = {"wiring": "paper", "student": "float", "calibration": "mse", "weight_range": "learned"}
    assert content["srq"]["quantization"] == {**options["quantization"], **written}
    loaded = srq_nni.load(folder / "net_g_latest.pth")
    assert same(dict(loaded.state_dict()), dict(model.net_g_ema.state_dict()))
    with torch.no_grad():
        assert torch.equal(loaded(batches[0]["lq"]), model.net_g_ema(batches[0]["lq"]))
    torch.load(Path(options["path"]["training_states"]) / "3.state", weights_only=True)


@pytest.mark.parametrize("quantizer", ["pams", "ddtb"])
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_a_resumed_model_equals_an_uninterrupted_one(
    options: dict[str, Any], batches: list[dict[str, torch.Tensor]], quantizer: str, stop: int
) -> None:
    if quantizer == "ddtb":
        options = changed(options, "quantization", DDTB)
    whole = build_model(options)
    train(whole, batches, 1, 7)

    first = build_model(options)
    train(first, batches, 1, stop)
    first.save(0, stop)
    resumed_options = changed(options, "path:pretrain_network_g", f"{options['path']['models']}/net_g_{stop}.pth")
    resumed = build_model(resumed_options)
    states = Path(options["path"]["training_states"])
    resumed.resume_training(torch.load(states / f"{stop}.state", weights_only=True))
    train(resumed, batches, stop + 1, 7)

    assert same(state(resumed), state(whole))
    assert same(dict(resumed.net_g_ema.state_dict()), dict(whole.net_g_ema.state_dict()))
    assert resumed.get_current_learning_rate() == whole.get_current_learning_rate()


def test_ddtb_without_an_observation_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as caught:
        build_model(changed(options, "quantization", {**DDTB, "calibration_iters": 0}))
    assert str(caught.value) == (
        "quantization: calibration_iters: 0 leaves ddtb without an observation; give at least 1"
    )


def test_several_gpus_in_one_process_are_refused(options: dict[str, Any]) -> None:
    model = QuantSRModel.__new__(QuantSRModel)
    model.opt = {**options, "num_gpu": 2}
    with pytest.raises(OptionError) as caught:
        model.model_to_device(torch.nn.Identity())
    assert str(caught.value) == (
        "num_gpu: 2 without a launcher means DataParallel, whose copies lose calibration; "
        "use torchrun --nproc_per_node=2 -m srq_nni.cli.train -opt FILE --launcher pytorch"
    )


def test_a_quantized_teacher_is_refused(options: dict[str, Any], batches: list[dict[str, torch.Tensor]]) -> None:
    model = build_model(options)
    model.save(0, 1)
    path = f"{options['path']['models']}/net_g_1.pth"
    with pytest.raises(srq_nni.checkpoint.CheckpointError, match="is quantized; give a float checkpoint here"):
        build_model(changed(options, "path:pretrain_network_t", path))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("bits", 3, "bits: 2 and the options say bits: 3"),
        ("wiring", "deploy", "wiring: paper and the options say wiring: deploy"),
        ("gate_statistics", "official", "gate_statistics: per_sample and the options say gate_statistics: official"),
        ("profile", "official", "wiring: paper and the options say wiring: official"),
    ],
)
@pytest.mark.parametrize("is_train", [True, False])
def test_resuming_or_testing_another_quantization_stops(
    options: dict[str, Any],
    batches: list[dict[str, torch.Tensor]],
    key: str,
    value: Any,
    expected: str,
    is_train: bool,
) -> None:
    options = changed(options, "quantization", DDTB)
    model = build_model(options)
    train(model, batches, 1, 3)
    model.save(0, 3)
    path = f"{options['path']['models']}/net_g_3.pth"
    other = {**changed(options, "path:pretrain_network_g", path), "is_train": is_train}
    build_model(other)
    with pytest.raises(srq_nni.checkpoint.CheckpointError) as caught:
        build_model(changed(other, f"quantization:{key}", value))
    assert f"'{path}' was made with {expected}; make them equal, or start from" in str(caught.value)


def test_a_file_from_the_observation_resumes_but_is_not_tested(
    options: dict[str, Any], batches: list[dict[str, torch.Tensor]]
) -> None:
    options = changed(options, "quantization", DDTB)
    model = build_model(options)
    train(model, batches, 1, 2)
    model.save(0, 2)
    options["path"]["pretrain_network_g"] = path = f"{options['path']['models']}/net_g_2.pth"
    build_model(options)
    for use in (lambda: build_model({**options, "is_train": False}), lambda: srq_nni.load(path)):
        with pytest.raises(srq_nni.checkpoint.CheckpointError, match=r"give one that was saved after iteration 2$"):
            use()


@pytest.mark.parametrize(
    ("change", "starts_float", "message"),
    [
        ({}, True, None),
        ({"student": "random"}, False, "(quantization: student: random; {file} is not loaded)"),
        ({"profile": "official"}, False, "(quantization: student: random; {file} is not loaded)"),
        ({"profile": "official", "student": "float"}, True, None),
    ],
)
def test_the_student_starts_where_it_is_told(
    options: dict[str, Any],
    change: dict[str, Any],
    starts_float: bool,
    message: str | None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("basicsr"), "propagate", True)
    file = options["path"]["pretrain_network_g"]
    stored = torch.load(file, weights_only=True)["params"]["conv_last.weight"]
    options["quantization"] |= change
    torch.manual_seed(7)
    model = build_model(options)
    for net in (model.net_g, model.net_g_ema):
        assert torch.equal(net.conv_last.weight, stored) is starts_float
    assert torch.equal(model.net_g.conv_last.weight, model.net_g_ema.conv_last.weight)
    assert torch.equal(model.teacher.conv_last.weight, stored)
    if message is not None:
        assert message.format(file=file) in caplog.text
    resumed = build_model(changed(options, "path:resume_state", "10.state"))
    assert torch.equal(resumed.net_g.conv_last.weight, stored)
    tested = {k: v for k, v in options.items() if k != "train"} | {"is_train": False}
    model.save(0, 3)
    tested["path"] = {"pretrain_network_g": f"{options['path']['models']}/net_g_3.pth"}
    assert torch.equal(build_model(tested).net_g.conv_last.weight, model.net_g.conv_last.weight)


def test_a_student_without_weights_says_so(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("basicsr"), "propagate", True)
    options["path"]["pretrain_network_g"] = None
    build_model(options)
    assert "The network starts from random weights; both papers start from float ones." in caplog.text


def test_the_profile_is_stored_as_what_it_says(options: dict[str, Any], batches: list[dict[str, torch.Tensor]]) -> None:
    block = {**DDTB, "profile": "official", "calibration_iters": 1, "static_iters": 1}
    model = build_model(changed(options, "quantization", block))
    train(model, batches, 1, 3)
    model.save(0, 3)
    path = Path(options["path"]["models"]) / "net_g_3.pth"
    stored = checkpoint.read(path)["srq"]
    assert stored["phase"] == "final"
    assert stored["quantization"]["gate_statistics"] == stored["quantization"]["wiring"] == "official"
    assert stored["quantization"]["limit_levels"] is False and "profile" not in stored["quantization"]
    gates = [q.gate for _, q in activation_quantizers(srq_nni.load(path)) if getattr(q, "gate", None) is not None]
    assert gates and {gate.statistics for gate in gates} == {"official"}
