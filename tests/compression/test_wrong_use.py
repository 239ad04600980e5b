"""Every wrong use of a quantizer, a calibration_config or a distiller is one exact sentence."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nni.compression.quantization import QATQuantizer
from torch import nn

import srq_nni
from srq_nni.errors import OptionError, QuantizationError, SRQError
from tests.compression.doors import Loop, make, network

CONV = {"op_names": ["body.0.conv1"], "quant_dtype": "int4"}


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


def run(model: nn.Module, steps: int, parameters: Any) -> None:
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        model.train()(torch.rand(1, 3, 8, 8)).mean().backward()
        optimizer.step()


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
    run(pams.bound_model, steps, pams.parameter_groups(lr=0.0))
    if steps > 2:
        assert set(pams.get_calibration_config()) == {"body.0.conv1", "body.0.conv2"}
        return
    for quantizer in (ddtb, pams):
        with pytest.raises(QuantizationError) as caught:
            quantizer.get_calibration_config()
        assert str(caught.value) == ONLY_OBSERVED.format(steps)


def config_of(method: str = "pams", **entry: Any) -> Any:
    quantizer = make(method, network(), [{**CONV, **entry}])
    if method == "ddtb":
        run(quantizer.bound_model, 3, quantizer.parameter_groups(lr=0.0))
    return quantizer, quantizer.get_calibration_config()


def renamed(config: Any, module: str, target: str) -> Any:
    targets = config["body.0.conv1"]
    return {module: {target: targets["_input_0"]}}


CALIBRATION: dict[str, tuple[Any, str]] = {
    "module": (
        lambda config: renamed(config, "body.0.conv3", "_input_0"),
        "calibration_config: no module 'body.0.conv3' is quantized here; did you mean 'body.0.conv1'?",
    ),
    "target": (
        lambda config: renamed(config, "body.0.conv1", "_output_0"),
        "calibration_config: target '_output_0' of 'body.0.conv1' is not quantized here; "
        "make the quantizer with the same config_list; did you mean '_input_0'?",
    ),
    "method": (
        lambda _: config_of("ddtb")[1],
        "calibration_config: target '_input_0' of 'body.0.conv1' has quantizer: 'ddtb' and the quantizer 'pams'; "
        "make them equal",
    ),
    "bits": (
        lambda _: config_of(quant_dtype="int8")[1],
        "calibration_config: target '_input_0' of 'body.0.conv1' has quant_bits: 8 and the quantizer 4; "
        "make them equal",
    ),
}


@pytest.mark.parametrize(("change", "message"), CALIBRATION.values(), ids=CALIBRATION)
def test_a_calibration_config_of_another_network_is_refused(change: Any, message: str) -> None:
    quantizer, config = config_of()
    with pytest.raises(OptionError) as caught:
        quantizer.update_calibration_config(change(config))
    assert str(caught.value) == message


LAST = "target '{}' of 'body.0.conv2' is damaged ({}); give it as it was returned"
DAMAGED: dict[str, tuple[Any, str]] = {
    "no state": (lambda targets: targets["_input_0"].pop("state"), LAST.format("_input_0", "it lacks 'state'")),
    "no scale": (lambda targets: targets["weight"].pop("scale"), LAST.format("weight", "it lacks 'scale'")),
    "scale": (
        lambda targets: targets["weight"].update(scale="wide"),
        LAST.format("weight", "could not convert string to float: 'wide'"),
    ),
    "no alpha": (
        lambda targets: targets["_input_0"]["state"].pop("alpha"),
        LAST.format(
            "_input_0",
            'Error(s) in loading state_dict for PAMSActivation: Missing key(s) in state_dict: "alpha".',
        ),
    ),
    "no quantizer": (
        lambda targets: targets["_input_0"].pop("quantizer"),
        "target '_input_0' of 'body.0.conv2' has quantizer: None and the quantizer 'pams'; make them equal",
    ),
    "no entry": (
        lambda targets: targets.update(weight=3),
        "'body.0.conv2' has no block of targets with an entry each; give it as it was returned",
    ),
}


@pytest.mark.parametrize(("change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_calibration_config_changes_nothing(change: Any, message: str) -> None:
    both = [{**CONV, "op_names": ["body.0.conv1", "body.0.conv2"]}]
    first, second = make("pams", network(), both), make("pams", network(), both)
    for quantizer in first.clock.quantizers:
        for bound in quantizer.bounds():
            bound.data.fill_(0.5)
    config, before = first.get_calibration_config(), copy.deepcopy(second.bound_model.state_dict())
    change(config["body.0.conv2"])
    with pytest.raises(OptionError) as caught:
        second.update_calibration_config(config)
    assert str(caught.value) == f"calibration_config: {message}"
    after = second.bound_model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_an_entry_of_nnis_own_quantizer_is_checked_before_anything_is_changed() -> None:
    model = network()
    qat = QATQuantizer(model, [{"op_names": ["body.0.conv2"], "quant_dtype": "int8"}], srq_nni.LoopEvaluator(Loop([])))
    quantizer = srq_nni.PAMSQuantizer.from_compressor(qat, [CONV])
    entry = dict.fromkeys(("scale", "zero_point"), torch.tensor(0.5))
    entry |= {"quant_bits": 8, "quant_dtype": "int8", "quant_scheme": "affine"}
    space = model.body[0].conv2._nni_wrapper.quantization_target_spaces["_input_0"]
    entry["quant_scheme"] = space.quant_scheme
    quantizer.update_calibration_config({"body.0.conv2": {"_input_0": entry}})
    assert float(space.scale) == 0.5
    for key, message in (("scale", "is damaged (it lacks 'scale')"), ("quant_bits", "has quant_bits: None and the")):
        lacking = {name: value for name, value in entry.items() if name != key}
        with pytest.raises(OptionError) as caught:
            quantizer.update_calibration_config({"body.0.conv2": {"_input_0": lacking}})
        assert str(caught.value).startswith(f"calibration_config: target '_input_0' of 'body.0.conv2' {message}")


@pytest.mark.parametrize("steps", [3, 5], ids=["gates held", "gates applied"])
def test_an_update_ends_an_observation_of_weights_as_well(steps: int) -> None:
    """A forward pass in training has put DDTB's quantizers into its float phase."""
    first, second = (make("ddtb", network(), [CONV], dynamic_ratio=1.0) for _ in range(2))
    run(first.bound_model, steps, first.parameter_groups(lr=0.0))
    second.bound_model.train()(torch.rand(1, 3, 8, 8))
    assert not second.clock.quantizers[1].enabled
    second.update_calibration_config(first.get_calibration_config())
    assert [quantizer.enabled for quantizer in second.clock.quantizers if hasattr(quantizer, "enabled")] == [True]
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(second.bound_model.eval()(x), first.bound_model.eval()(x))


def test_a_network_is_rebuilt_only_from_what_fits() -> None:
    quantizer, config = config_of()
    with pytest.raises(OptionError) as caught:
        srq_nni.quantized_network(network(), config)
    assert str(caught.value) == (
        "calibration_config: the weight of 'body.0.conv1' is not on the grid of its entry; "
        "give the network that unwrap_model() returned"
    )
    plain = quantizer.unwrap_model()
    with pytest.raises(SRQError, match=r"^the network has no module 'body\.0\.conv9'; did you mean 'body\.0\.conv"):
        srq_nni.quantized_network(plain, {"body.0.conv9": config["body.0.conv1"]})
    foreign = {"body.0.conv1": {"weight": {"scale": torch.tensor(1.0)}}}
    with pytest.raises(OptionError) as caught:
        srq_nni.quantized_network(plain, foreign)
    assert str(caught.value) == (
        "calibration_config: target 'weight' of 'body.0.conv1' is not of PAMS or DDTB; "
        "give one from PAMSQuantizer or DDTBQuantizer"
    )
    del config["body.0.conv1"]["_input_0"]["state"]
    with pytest.raises(OptionError, match=r"^calibration_config: target '_input_0' of 'body\.0\.conv1' is damaged "):
        srq_nni.quantized_network(plain, {"body.0.conv1": {"_input_0": {"quantizer": "pams"}}})


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
