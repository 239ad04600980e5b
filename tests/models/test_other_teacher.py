"""A teacher that is another network than the student: its losses by hand, and what is wrong with it."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from basicsr.models import build_model

from srq_nni.archs.quantized_arch import build_float
from srq_nni.errors import SRQError
from srq_nni.functional import skt_loss
from srq_nni.models.preflight import check_options
from srq_nni.summary.probe import probe_training
from tests.models.steps import DDTB, train
from tests.sr_data import NETWORK, Missing, changed, float_checkpoint

PAMS = {"quantizer": "pams", "bits": 4, "calibration_iters": 2}
LARGER = {**NETWORK, "num_feat": 12, "num_block": 2}
OTHER = {"type": "MSRResNet", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 6, "num_block": 1, "upscale": 2}
RDN = {"type": "RDN", "upscale": 2, "num_feat": 4, "num_block": 1, "num_layer": 2, "num_grow_ch": 4}


@pytest.fixture
def taught(options: dict[str, Any], tmp_path: Any) -> dict[str, Any]:
    """A run whose teacher is a larger EDSR."""
    return with_teacher(options, tmp_path, LARGER)


def with_teacher(options: dict[str, Any], tmp_path: Any, network: dict[str, Any]) -> dict[str, Any]:
    file = float_checkpoint(tmp_path / f"{network['type']}.pth", network, seed=5)
    options = changed(changed(options, "path:pretrain_network_t", file), "network_t", network)
    options["train"] |= {"distill_opt": {"type": "L1Loss", "loss_weight": 3.0}, "distill_flips": False}
    return options


def checked(options: dict[str, Any]) -> list[str]:
    """Return the warnings of a run before it gets its folders."""
    options["path"] = {key: value for key, value in options["path"].items() if key.startswith("pretrain")}
    return check_options(options, is_train=True)


def refusal(options: dict[str, Any]) -> str:
    with pytest.raises(SRQError) as error:
        checked(options)
    return str(error.value)


@pytest.mark.parametrize("network", [LARGER, OTHER, RDN], ids=lambda network: network["type"])
@pytest.mark.parametrize("block", [PAMS, DDTB], ids=lambda block: block["quantizer"])
def test_both_losses_are_those_to_what_it_says(
    options: dict[str, Any], tmp_path: Any, batches: list[dict[str, torch.Tensor]], network: Any, block: Any
) -> None:
    options = changed(with_teacher(options, tmp_path, network), "quantization", block)
    assert checked(changed(options, "train:total_iter", 9)) == []
    model, features = build_model(options), list[torch.Tensor]()
    modules = {"EDSR": "upsample", "MSRResNet": "upconv1", "RDN": "UPNet"}
    for net, name in ((model.net_g, "upsample"), (model.teacher, modules[network["type"]])):
        dict(net.named_modules())[name].register_forward_pre_hook(lambda _, args: features.append(args[0]))
    log = train(model, batches, 1, 6)[-1]
    plain = build_float(network)
    plain.load_state_dict(torch.load(options["path"]["pretrain_network_t"])["params"])
    with torch.no_grad():
        target = plain.eval()(batches[0]["lq"])
    assert log["l_distill"] == pytest.approx(3.0 * float((model.output.detach() - target).abs().mean()), rel=1e-5)
    student, teacher = features[-2:]
    assert student.shape[1] != teacher.shape[1]
    assert log["l_skt"] == pytest.approx(3.92 * float(skt_loss(student, teacher).detach()), rel=1e-5)


def test_a_teacher_that_is_written_out_is_the_one_without_the_key(
    options: dict[str, Any], tmp_path: Any, batches: list[dict[str, torch.Tensor]]
) -> None:
    options = with_teacher(options, tmp_path, NETWORK)
    named, unnamed = (build_model(each) for each in (options, changed(options, "network_t", Missing)))
    assert train(named, batches, 1, 4) == train(unnamed, batches, 1, 4)


def test_the_time_of_a_step_is_that_with_the_larger_teacher(
    taught: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, forward = [], type(build_float(LARGER)).forward

    def count(self: Any, x: torch.Tensor) -> torch.Tensor:
        ran.append(self.conv_first.out_channels)
        return forward(self, x)

    monkeypatch.setattr(type(build_float(LARGER)), "forward", count)
    steps = [phase.iterations for phase in probe_training(taught).phases]
    assert sum(steps) == taught["train"]["total_iter"]
    assert ran.count(LARGER["num_feat"]) == 2 + 2 * len(steps), "once in each step that is measured"


def test_without_a_loss_that_asks_for_it_a_line_says_so(taught: dict[str, Any]) -> None:
    taught["train"] |= {"skt_opt": None, "distill_opt": None}
    del taught["train"]["distill_flips"]
    unused = "nothing reads it without train: skt_opt or distill_opt; add that, or delete the key"
    assert checked(taught) == [f"network_t: {unused}", f"path: pretrain_network_t: {unused}"]


def test_a_float_run_says_that_it_reads_no_teacher(taught: dict[str, Any]) -> None:
    taught["model_type"] = "SRModel"
    del taught["quantization"], taught["train"]["distill_flips"]
    assert "network_t: model_type 'SRModel' does not read it, a QuantSRModel does" in checked(taught)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({**LARGER, "upscale": 4}, "network_t: it makes (1, 3, 64, 64) of an image from which network_g makes "),
        ({**LARGER, "upscale": 3}, "network_t: it makes (1, 3, 48, 48) of an image from which network_g makes "),
        ({**LARGER, "num_in_ch": 1}, "network_t: it does not run on an image of 16x16 that network_g takes ("),
        ({**LARGER, "type": "EDRS"}, "network_t: type 'EDRS' is not known; give a registered network; did you mean"),
        ({**LARGER, "num_feats": 9}, "network_t: EDSR.__init__() got an unexpected keyword argument 'num_feats'"),
        ({**LARGER, "num_feat": "9"}, "network_t: num_feat: '9' is not allowed; give a number, such as the default 64"),
        ({"num_feat": 9}, "network_t: key 'type' is missing; add it"),
        ("EDSR", "network_t: 'EDSR' is not a block of keys; add its keys below it, indented"),
    ],
)
def test_a_wrong_teacher_is_one_sentence(taught: dict[str, Any], tmp_path: Any, network: Any, message: str) -> None:
    with contextlib.suppress(SRQError, TypeError, ValueError):  # of those that no network can be built from
        taught["path"]["pretrain_network_t"] = float_checkpoint(tmp_path / "wrong.pth", network)
    assert refusal(changed(taught, "network_t", network)).startswith(message)


def test_other_weights_and_none_are_refused(taught: dict[str, Any], tmp_path: Any) -> None:
    small = float_checkpoint(tmp_path / "small.pth")
    assert refusal(changed(taught, "path:pretrain_network_t", small)) == (
        f"checkpoint '{small}' does not fit the network: it lacks body.1.conv1.weight, body.1.conv1.bias, "
        "body.1.conv2.weight and 1 more; give a checkpoint of the architecture in network_t"
    )
    assert refusal(changed(taught, "path:pretrain_network_t", Missing)) == (
        "train: skt_opt compares with a teacher, but path: pretrain_network_t is missing; give the float checkpoint "
        "of network_t there, or delete skt_opt and distill_opt"
    )


def test_a_quantized_teacher_is_refused(taught: dict[str, Any]) -> None:
    quantized = {**LARGER, "type": "PAMS_EDSR", "bits": 4}
    assert refusal(changed(taught, "network_t", quantized)) == (
        "network_t: PAMS_EDSR has quantizers; give the float network, type: EDSR"
    )


def test_skt_needs_a_feature_of_the_same_size(taught: dict[str, Any]) -> None:
    """``conv_last`` of the student reads an enlarged image, the same module of the teacher, too; other sizes do not."""
    assert checked(changed(taught, "quantization:feature", "conv_last")) == []
    file = float_checkpoint(taught["path"]["pretrain_network_t"] + ".other", OTHER)
    options = changed(changed(taught, "path:pretrain_network_t", file), "network_t", OTHER)
    assert refusal(changed(options, "quantization:feature", "conv_last")) == (
        "train: skt_opt compares features of one size, and that of network_t is (16, 16) where that of network_g is "
        "(32, 32); delete it, or give a teacher that enlarges at the same place"
    )


def test_a_teacher_without_a_preset_needs_no_skt(taught: dict[str, Any], tmp_path: Any) -> None:
    other = {"type": "SRVGGNetCompact_basicsr", "num_feat": 4, "num_conv": 1, "upscale": 2}
    file = float_checkpoint(tmp_path / "compact.pth", other)
    options = changed(changed(taught, "path:pretrain_network_t", file), "network_t", other)
    assert refusal(dict(options)) == (
        "train: skt_opt compares features, and which one that is in network_t 'SRVGGNetCompact_basicsr' is not known; "
        "delete it, or give a teacher of one of the types EDSR, MSRResNet, RDN, SRResNet"
    )
    assert checked(changed(options, "train:skt_opt", None)) == []


def test_a_teacher_that_fails_without_words_is_named(taught: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, x: torch.Tensor) -> torch.Tensor:
        if self.conv_first.out_channels != NETWORK["num_feat"]:
            raise AssertionError
        return torch.zeros(1, 3, 32, 32)

    monkeypatch.setattr(type(build_float(NETWORK)), "forward", fail)
    assert refusal(taught) == (
        "network_t: it does not run on an image of 16x16 that network_g takes (AssertionError); give a teacher for the "
        "same images"
    )


def test_a_network_that_needs_larger_images_is_left_to_training(
    taught: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = []

    def fail(self: Any, x: torch.Tensor) -> torch.Tensor:
        failed.append(self.conv_first.out_channels)
        raise ValueError("give at least 64x64")

    monkeypatch.setattr(type(build_float(NETWORK)), "forward", fail)
    assert checked(taught) == [] and failed == [NETWORK["num_feat"]]
