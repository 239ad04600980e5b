"""A calibration_config goes into a quantizer or a network whole, or is refused in one exact sentence."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nni.compression.quantization import QATQuantizer

import srq_nni
from srq_nni.errors import OptionError, SRQError
from tests.compression.doors import CONV, Loop, make, network, still_steps


def config_of(method: str = "pams", **entry: Any) -> Any:
    quantizer = make(method, network(), [{**CONV, **entry}])
    if method == "ddtb":
        still_steps(quantizer.bound_model, 3, quantizer.parameter_groups(lr=0.0))
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
    still_steps(first.bound_model, steps, first.parameter_groups(lr=0.0))
    second.bound_model.train()(torch.rand(1, 3, 8, 8))
    assert not second.clock.quantizers[1].enabled
    second.update_calibration_config(first.get_calibration_config())
    assert [quantizer.enabled for quantizer in second.clock.quantizers if hasattr(quantizer, "enabled")] == [True]
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(second.bound_model.eval()(x), first.bound_model.eval()(x))


@pytest.mark.parametrize("static_iters", [0, 1])
def test_an_update_is_not_undone_by_the_next_step(static_iters: int) -> None:
    first, second = (make("ddtb", network(), [CONV], static_iters=static_iters, dynamic_ratio=0.0) for _ in range(2))
    still_steps(first.bound_model, 3, first.parameter_groups(lr=0.0))
    for bound in first.clock.quantizers[0].bounds():
        bound.data.mul_(0.5)  # as training moves it
    second.update_calibration_config(config := first.get_calibration_config())
    still_steps(second.bound_model, 2, [{"params": group["params"]} for group in second.parameter_groups(lr=0.0)])
    assert second.clock.phase == "final"
    expected, found = (c["body.0.conv1"]["_input_0"]["bounds"] for c in (config, second.get_calibration_config()))
    assert torch.equal(expected, found)


def carried_over(method: str, weight_range: str) -> tuple[Any, Any, torch.nn.Module]:
    """Return a calibration_config, a quantizer of the same entries that took it, and the network rebuilt from it."""
    first, config = config_of(method, weight_range=weight_range)
    second = make(method, network(), [{**CONV, "weight_range": weight_range}])
    second.update_calibration_config(config)
    x = torch.rand(1, 3, 8, 8)
    expected = first.bound_model.eval()(x)
    assert torch.equal(second.bound_model.eval()(x), expected)
    rebuilt = srq_nni.quantized_network(first.unwrap_model(), config)
    torch.testing.assert_close(rebuilt(x), expected, rtol=1e-6, atol=1e-6)
    other = make(method, network(), [CONV])
    with pytest.raises(OptionError, match=r"'weight' of 'body\.0\.conv1' has options: "):
        other.update_calibration_config(config)
    return config, second, rebuilt


@pytest.mark.parametrize("method", ["pams", "ddtb"])
def test_weights_without_a_level_at_0_go_into_a_quantizer_and_a_network(method: str) -> None:
    config, _, rebuilt = carried_over(method, "learned_midrise")
    entry = config["body.0.conv1"]["weight"]
    assert (entry["quant_min"], entry["quant_max"]) == (-15, 15)
    assert float(entry["tracked_max"]) == pytest.approx(15 * float(entry["scale"]))
    assert rebuilt.body[0].conv1.weight_quantizer.grid(torch.zeros(())).levels == 16


@pytest.mark.parametrize("method", ["pams", "ddtb"])
def test_scales_of_channels_go_into_a_quantizer_and_a_network(method: str) -> None:
    config, second, rebuilt = carried_over(method, "learned_per_channel")
    scale = config["body.0.conv1"]["weight"]["scale"]
    assert tuple(scale.shape) == (8, 1, 1, 1) and scale.unique().numel() == 8
    assert rebuilt.body[0].conv1.weight_quantizer.grid(torch.zeros(())).scale == tuple(scale.flatten().tolist())
    config["body.0.conv1"]["weight"]["scale"] = scale * torch.linspace(1, 1.1, 8).reshape(-1, 1, 1, 1)
    with pytest.raises(OptionError) as caught:
        second.update_calibration_config(config)
    given, found = (float(each.flatten()[1]) for each in (config["body.0.conv1"]["weight"]["scale"], scale))
    assert str(caught.value) == (
        f"calibration_config: target 'weight' of 'body.0.conv1' has scale {given:.6g} and its weight gives "
        f"{found:.6g}; load the trained weights first, or rebuild an unwrapped network with srq_nni.quantized_network"
    )
    config["body.0.conv1"]["weight"]["scale"] = scale[:7]
    with pytest.raises(OptionError, match=r"'weight' of 'body\.0\.conv1' has 7 scales and its weight 8 channels; make"):
        second.update_calibration_config(config)


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
