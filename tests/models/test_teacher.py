"""Distillation of the output: its value and gradient by hand, beside SKT and alone, and what is wrong with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from basicsr.models import build_model

from srq_nni.errors import OptionError
from srq_nni.functional import skt_loss
from srq_nni.models.orientation import Orientation
from srq_nni.models.preflight import check_options
from tests.models.steps import DDTB, train
from tests.sr_data import Missing, changed, float_checkpoint

WEIGHT = 3.0


@pytest.fixture
def distilling(options: dict[str, Any], tmp_path: Any) -> dict[str, Any]:
    """A teacher with other weights, whose output the network shall have, and no SKT."""
    options = changed(options, "path:pretrain_network_t", float_checkpoint(tmp_path / "teacher.pth", seed=5))
    options["train"]["skt_opt"] = None
    options["train"] |= {"distill_opt": {"type": "L1Loss", "loss_weight": WEIGHT}, "distill_flips": False}
    return options


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.net_g.named_parameters() if p.grad is not None}


def one_step(options: dict[str, Any], batch: dict[str, torch.Tensor]) -> tuple[Any, dict[str, float]]:
    model = build_model(options)
    return model, train(model, [batch], 1, 1)[0]


def test_value_and_gradient(distilling: dict[str, Any], batches: list[dict[str, torch.Tensor]]) -> None:
    """Both losses are L1, so the gradient is that of the truth plus ``WEIGHT`` times that of the teacher's output."""
    model, log = one_step(distilling, batches[0])
    with torch.no_grad():
        target = model.teacher(batches[0]["lq"])
    plain = changed(distilling, "train:distill_opt", Missing)
    towards_truth, truth = one_step(plain, batches[0])
    towards_teacher, teacher = one_step(plain, {**batches[0], "gt": target})
    assert set(log) == {"l_pix", "l_distill"}
    assert log["l_pix"] == truth["l_pix"]
    assert log["l_distill"] == pytest.approx(WEIGHT * teacher["l_pix"], rel=1e-5)
    first, second = gradients(towards_truth), gradients(towards_teacher)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, first[name] + WEIGHT * second[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("block", [{"quantizer": "pams", "bits": 4}, DDTB])
def test_beside_skt_the_teacher_runs_once(
    distilling: dict[str, Any], batches: list[dict[str, torch.Tensor]], block: dict[str, Any]
) -> None:
    options = changed(distilling, "quantization", block)
    alone = train(build_model(options), batches, 1, 6)[-1]
    options["train"]["skt_opt"] = {"type": "SKTLoss", "loss_weight": 3.92}
    model, passes = build_model(options), list[int]()
    model.teacher.register_forward_hook(lambda *_: passes.append(1))
    log = train(model, batches, 1, 6)
    observed = options["quantization"].get("calibration_iters", 0) if block is DDTB else 0
    assert len(passes) == 6 - observed
    assert set(log[-1]) == {"l_pix", "l_skt", "l_distill"} and set(alone) == {"l_pix", "l_distill"}
    assert log[-1]["l_distill"] > 0 and log[-1]["l_skt"] > 0


def test_with_bfloat16_the_loss_is_float32(distilling: dict[str, Any], batches: list[dict[str, torch.Tensor]]) -> None:
    exact = one_step(distilling, batches[0])[1]["l_distill"]
    distilling["train"]["amp"] = "bfloat16"
    model, dtypes = build_model(distilling), list[torch.dtype]()
    reduce = model.reduce_loss_dict
    model.reduce_loss_dict = lambda losses: dtypes.append(model.own_losses["l_distill"].dtype) or reduce(losses)
    log = train(model, [batches[0]], 1, 1)[0]
    assert dtypes == [torch.float32]
    assert log["l_distill"] == pytest.approx(exact, rel=0.05)


def test_a_network_that_is_its_teacher_learns_nothing_from_it(
    options: dict[str, Any], batches: list[dict[str, torch.Tensor]]
) -> None:
    options["train"] |= {
        "skt_opt": None,
        "distill_opt": {"type": "L1Loss", "loss_weight": WEIGHT},
        "distill_flips": False,
    }
    fine, coarse = (one_step(changed(options, "quantization:bits", bits), batches[0])[1] for bits in (8, 2))
    assert 0 < fine["l_distill"] < coarse["l_distill"] / 4


@pytest.mark.parametrize("skt", [None, {"type": "SKTLoss", "loss_weight": 3.92}])
@pytest.mark.parametrize("iteration", range(1, 6))
def test_the_teacher_sees_the_orientation_of_the_step(
    distilling: dict[str, Any], batches: list[dict[str, torch.Tensor]], iteration: int, skt: Any
) -> None:
    """The losses are those between the student and what the teacher says to the turned image, turned back."""
    options = changed(changed(distilling, "train:distill_flips", Missing), "train:skt_opt", skt)
    model, seen, features = build_model(options), list[torch.Tensor](), list[torch.Tensor]()
    for net in (model.net_g, model.teacher):
        dict(net.named_modules())["upsample"].register_forward_pre_hook(lambda _, args: features.append(args[0]))
    model.teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    log = train(model, [batches[0]], iteration, iteration)[0]
    orientation, images = Orientation.drawn(options["manual_seed"], iteration), batches[0]["lq"]
    torch.testing.assert_close(seen[0], orientation.turn(images), rtol=0, atol=0)
    with torch.no_grad():
        target = orientation.turn_back(model.teacher(orientation.turn(images)))
    assert log["l_distill"] == pytest.approx(WEIGHT * float((model.output.detach() - target).abs().mean()), rel=1e-5)
    if skt is not None:
        turned = orientation.turn_back(features[1])
        assert log["l_skt"] == pytest.approx(3.92 * float(skt_loss(features[0], turned).detach()), rel=1e-5)


def test_a_resumed_run_draws_the_same_orientations(
    distilling: dict[str, Any], batches: list[dict[str, torch.Tensor]]
) -> None:
    options = changed(distilling, "train:distill_flips", True)
    model, later = build_model(options), list[torch.Tensor]()
    train(model, batches, 1, 6)
    again = build_model(options)
    for net in (model, again):
        net.teacher.register_forward_pre_hook(lambda _, args: later.append(args[0]))
    train(again, batches, 4, 6)
    train(model, batches, 4, 6)
    assert all(torch.equal(*pair) for pair in zip(later[:3], later[3:], strict=True))


def refusal(options: dict[str, Any]) -> str:
    """Return what a run says before it starts; it gets its folders later."""
    options["path"] = {key: value for key, value in options["path"].items() if key.startswith("pretrain")}
    with pytest.raises(OptionError) as error:
        check_options(options, is_train=True)
    return str(error.value)


def test_it_needs_a_teacher(distilling: dict[str, Any]) -> None:
    for skt, both in ((None, "distill_opt"), ({"type": "SKTLoss"}, "skt_opt and distill_opt")):
        options = changed(changed(distilling, "path:pretrain_network_t", Missing), "train:skt_opt", skt)
        assert refusal(options) == (
            f"train: {both.split()[0]} compares with a teacher, but path: pretrain_network_t is missing; give the "
            f"float checkpoint of network_g there, or delete {both}"
        )


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"type": "L1Lose"}, "type: 'L1Lose' is not known; did you mean 'L1Loss'?"),
        ({"type": "L1Loss", "weight": 1}, "got an unexpected keyword argument 'weight'; mend it"),
        ({"loss_weight": 1}, "key 'type' is missing; add it, as in the files of basicsr_configs/"),
        (3, "3 is not a block of keys; add its keys below it, indented"),
        ({"type": "L1Loss", "loss_weight": "much"}, "loss_weight: 'much' is not allowed; give a number"),
    ],
)
def test_wrong_blocks_are_refused(distilling: dict[str, Any], block: Any, message: str) -> None:
    assert refusal(changed(distilling, "train:distill_opt", block)) == f"train: distill_opt: {message}"


def test_flips_are_on_or_off(distilling: dict[str, Any]) -> None:
    assert refusal(changed(distilling, "train:distill_flips", "sometimes")) == (
        "train: distill_flips: 'sometimes' is not allowed; give true or false"
    )
