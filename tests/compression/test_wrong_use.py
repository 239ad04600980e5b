"""Every wrong use of a quantizer or a distiller is one exact sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import srq_nni
from srq_nni.errors import OptionError, QuantizationError
from tests.compression.doors import CONV, Loop, make, network, still_steps

COMPRESS: dict[str, tuple[str, bool, dict[str, Any], str]] = {
    "no evaluator": (
        "pams",
        False,
        {"max_steps": 5},
        "compress trains through an evaluator and there is none; give one, or train the network in your own loop and "
        "call get_calibration_config()",
    ),
    "no length": ("pams", True, {}, "compress: neither max_steps nor max_epochs is given; give one of them"),
    "only observes": (
        "ddtb",
        True,
        {"max_steps": 2},
        "max_steps: 2 ends while ddtb only observes; give more than calibration_iters (2), or lower those",
    ),
}


@pytest.mark.parametrize(("method", "evaluated", "length", "message"), COMPRESS.values(), ids=COMPRESS)
def test_a_wrong_compress_is_one_exact_sentence(
    method: str, evaluated: bool, length: dict[str, Any], message: str
) -> None:
    quantizer = make(method, network(), [CONV], srq_nni.LoopEvaluator(Loop([])) if evaluated else None)
    with pytest.raises(QuantizationError) as caught:
        quantizer.compress(**length)
    assert str(caught.value) == message


def test_two_quantizers_on_one_module_are_one_exact_sentence() -> None:
    model = network()
    first = make("pams", model, [CONV])
    with pytest.raises(OptionError) as caught:
        make("ddtb", model, [CONV])
    assert str(caught.value) == (
        "config_list: 'body.0.conv1' is in the hands of another compressor; call its unwrap_model() first, or make "
        "this one with DDTBQuantizer.from_compressor(it, ..)"
    )
    first.unwrap_model()
    make("ddtb", model, [CONV])


def test_an_evaluator_that_hides_its_optimizer_is_refused() -> None:
    from nni.compression.utils.evaluator import Evaluator

    class Hiding(Evaluator):
        _initialization_complete = True

    with pytest.raises(QuantizationError) as caught:
        make("pams", network(), [CONV], Hiding())
    assert str(caught.value) == (
        "evaluator: Hiding gives the bounds no learning rate of their own; "
        "give a TorchEvaluator, a LightningEvaluator or a LoopEvaluator"
    )


def epochs_of_two(model: nn.Module, evaluator: Any, max_steps: int | None, max_epochs: int) -> None:
    evaluator.watch(optimizer := torch.optim.SGD(model.parameters(), lr=0.0))
    for _ in range(2 * max_epochs):
        optimizer.zero_grad()
        evaluator.loss(model.train()(torch.rand(1, 3, 8, 8)).mean(), {"lq": torch.rand(1, 3, 8, 8)}).backward()
        optimizer.step()


ONLY_OBSERVED = (
    "ddtb made {} steps and only observes in the first 2 (calibration_iters), so its bounds are not set; "
    "train longer, or lower calibration_iters"
)


@pytest.mark.parametrize("distilled", [False, True], ids=["quantizer", "distiller"])
def test_epochs_that_end_in_the_observation_are_one_exact_sentence(distilled: bool) -> None:
    model = network()
    compressor = quantizer = make("ddtb", model, [CONV], srq_nni.LoopEvaluator(epochs_of_two))
    if distilled:
        compressor = srq_nni.SKTDistiller.from_compressor(
            quantizer,
            srq_nni.skt_config_list(model),
            teacher_model=network(),
            teacher_predict=lambda sample, net: net(sample["lq"]),
        )
    with pytest.raises(QuantizationError) as caught:
        compressor.compress(max_steps=None, max_epochs=1)
    assert str(caught.value) == ONLY_OBSERVED.format(2)
    compressor.compress(max_steps=None, max_epochs=1)  # it goes on where it stopped
    assert quantizer.clock.count == 4
    bounds = quantizer.get_calibration_config()["body.0.conv1"]["_input_0"]["bounds"]
    assert not torch.equal(bounds.abs(), torch.full((2,), 10.0))


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_bounds_that_are_not_set_are_not_given_out(steps: int) -> None:
    """Nor are those of a quantizer that is fused with the one that is asked."""
    ddtb = make("ddtb", network(), [CONV])
    pams = srq_nni.PAMSQuantizer.from_compressor(ddtb, [{**CONV, "op_names": ["body.0.conv2"]}])
    still_steps(pams.bound_model, steps, pams.parameter_groups(lr=0.0))
    if steps > 2:
        assert set(pams.get_calibration_config()) == {"body.0.conv1", "body.0.conv2"}
        return
    for quantizer in (ddtb, pams):
        with pytest.raises(QuantizationError) as caught:
            quantizer.get_calibration_config()
        assert str(caught.value) == ONLY_OBSERVED.format(steps)


def distiller(model: nn.Module, entries: Any, teacher: nn.Module | None = None) -> Any:
    quantizer = make("pams", model, [CONV], srq_nni.LoopEvaluator(Loop([])))
    teacher = network() if teacher is None else teacher
    return srq_nni.SKTDistiller.from_compressor(
        quantizer, entries, teacher_model=teacher, teacher_predict=lambda sample, net: net(sample["lq"])
    )


DISTILLED: dict[str, tuple[Any, str]] = {
    "sequence": (
        [{"op_names": ["upsample"], "target_names": ["_input_0"]}],
        "config_list entry 0: 'upsample' is a sequence; name its first module, 'upsample.0', with _input_0",
    ),
    "nothing": (
        [{"op_names_re": ["nothing"], "target_names": ["_input_0"]}],
        "config_list entry 0: it selects no module; name those whose features are compared",
    ),
    "weight": (
        [{"op_names": ["conv_last"], "target_names": ["weight"]}],
        "config_list entry 0: target 'weight' of 'conv_last' is no feature; give _input_0 or _output_0",
    ),
    "input": (
        [{"op_names": ["conv_last"], "target_names": ["_input_1"]}],
        "config_list entry 0: target '_input_1' of module 'conv_last' (Conv2d) does not exist; its forward has the "
        "inputs _input_0 (input)",
    ),
    "lambda": (
        [{"op_names": ["conv_last"], "target_names": ["_input_0"], "lambda": "much"}],
        "config_list entry 0: lambda: 'much' is not allowed; give a weight of the loss from 0 on",
    ),
    "negative lambda": (
        [{"op_names": ["conv_last"], "target_names": ["_input_0"], "lambda": -1}],
        "config_list entry 0: lambda: -1 is not allowed; give a weight of the loss from 0 on",
    ),
    "link": (
        [{"op_names": ["upsample.0"], "target_names": ["_input_0"], "link": "upsampel.0"}],
        "config_list entry 0: link: the teacher has no module 'upsampel.0'; did you mean 'upsample.0'?",
    ),
}


@pytest.mark.parametrize(("entries", "message"), DISTILLED.values(), ids=DISTILLED)
def test_a_wrong_feature_is_one_exact_sentence(entries: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        distiller(network(), entries)
    assert str(caught.value) == message


def test_a_teacher_is_another_network() -> None:
    model = network()
    with pytest.raises(OptionError) as caught:
        distiller(model, srq_nni.skt_config_list(model), teacher=model)
    assert str(caught.value) == "teacher_model: it is the student itself; give a float copy: copy.deepcopy(model)"


def test_the_teacher_is_frozen_and_the_feature_must_run() -> None:
    model, teacher = network(), network()
    made = distiller(model, srq_nni.skt_config_list(model), teacher)
    assert not teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())
    with pytest.raises(OptionError) as caught:
        made.compute_distill_loss()
    assert str(caught.value) == (
        "config_list: 'upsample.0' of the student did not run in the forward pass; name one that does"
    )
    with pytest.raises(OptionError, match=r"^feature: the network has no module 'upsampel'; did you mean 'upsample'"):
        srq_nni.skt_config_list(model, feature="upsampel")
