"""Every wrong entry of a config_list, and every wrong use of a quantizer, is one exact sentence."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from torch.nn.parallel import DataParallel

import srq_nni
from srq_nni.archs.quantized_arch import insert_quantizers
from srq_nni.compression.options import options_from
from srq_nni.errors import OptionError, QuantizationError
from tests.compression.doors import make, network
from tests.compression.test_quantizers import OwnNetwork

INT4 = {"quant_dtype": "int4"}
CONV = {"op_names": ["body.0.conv1"], **INT4}

WRONG: dict[str, tuple[list[dict[str, Any]], str]] = {
    "pattern that matches nothing": (
        [{"op_names_re": [r"bdy\.0"], **INT4}],
        "config_list entry 0: op_names_re: 'bdy\\\\.0' selects no module; did you mean 'body.0'?",
    ),
    "misspelt module": (
        [CONV, {"op_names": ["body.0.covn2"], **INT4}],
        "config_list entry 1: op_names: 'body.0.covn2' selects no module; did you mean 'body.0.conv2'?",
    ),
    "misspelt type": (
        [{"op_types": ["Conv2D"], **INT4}],
        "config_list entry 0: op_types: 'Conv2D' selects no module; did you mean 'Conv2d'?",
    ),
    "target that the module does not have": (
        [{**CONV, "target_names": ["_input_1"]}],
        "config_list entry 0: target '_input_1' of module 'body.0.conv1' (Conv2d) does not exist; its forward has the "
        "inputs _input_0 (input)",
    ),
    "weight of an activation": (
        [{"op_names": ["body.0.relu"], "target_names": ["weight"], **INT4}],
        "config_list entry 0: target 'weight' of module 'body.0.relu' (ReLU) cannot be quantized; only those of "
        "nn.Conv2d and nn.Linear can",
    ),
    "bias": (
        [{**CONV, "target_names": ["bias"]}],
        "config_list entry 0: target 'bias' of module 'body.0.conv1' (Conv2d) stays in floating point; delete it "
        "(export can put it on the accumulator's grid)",
    ),
    "one bit": (
        [{**CONV, "quant_dtype": "int1"}],
        "config_list entry 0: quant_dtype 'int1' is not allowed; give 'int2' to 'int8'",
    ),
    "sixteen bits": (
        [{**CONV, "quant_dtype": "int16"}],
        "config_list entry 0: quant_dtype 'int16' is not allowed; give 'int2' to 'int8'",
    ),
    "unsigned": (
        [{**CONV, "quant_dtype": "uint4"}],
        "config_list entry 0: quant_dtype 'uint4' is not allowed; give 'int2' to 'int8'",
    ),
    "missing dtype": (
        [{"op_names": ["body.0.conv1"]}],
        "config_list entry 0: quant_dtype None is not allowed; give 'int2' to 'int8'",
    ),
    "twice": (
        [CONV, {"op_types": ["Conv2d"], **INT4}],
        "config_list entry 1: target '_input_0' of 'body.0.conv1' is quantized twice; name it once",
    ),
    "misspelt setting": (
        [{**CONV, "percentil": 99.0}],
        "config_list entry 0: key 'percentil' is not known; allowed are op_types, op_names, op_names_re, "
        "exclude_op_types, exclude_op_names, exclude_op_names_re, target_names, target_settings, fuse_names, "
        "quant_dtype, quant_scheme, granularity, apply_method, calibration, percentile, limit_levels, "
        "gate_statistics, gate_gradient, gate_start, dynamic_ratio, weight_range; "
        "did you mean 'percentile'?",
    ),
    "percentile": (
        [{**CONV, "percentile": 30}],
        "config_list entry 0: percentile: 30 is not allowed; give a number above 50, up to 100",
    ),
    "percentile of a target": (
        [CONV, {"op_names": ["body.0.conv2"], "target_settings": {"weight": {**INT4, "percentile": "high"}}}],
        "config_list entry 1: percentile: 'high' is not allowed; give a number above 50, up to 100",
    ),
    "dynamic ratio": (
        [{**CONV, "dynamic_ratio": 1.5}],
        "config_list entry 0: dynamic_ratio: 1.5 is not allowed; give a share from 0 to 1",
    ),
    "calibration": (
        [{**CONV, "calibration": "percentil"}],
        "config_list entry 0: calibration: 'percentil' is not known; give one of mae, mse, percentile, official; "
        "did you mean 'percentile'?",
    ),
    "wiring": (
        [{"wiring": "deplyo", **INT4}],
        "config_list entry 0: wiring: 'deplyo' is not known; give one of paper, deploy, tensorrt, official; "
        "did you mean 'deploy'?",
    ),
    "wiring with selectors": (
        [{"wiring": "paper", "op_names": ["body"], **INT4}],
        "config_list entry 0: key 'op_names' does not go with 'wiring', which names the modules itself; allowed are "
        "wiring, quant_dtype, head, tail, skip, calibration, percentile, weight_range, dynamic_ratio",
    ),
    "wiring with bits out of range": (
        [{"wiring": "paper", "quant_dtype": "int9"}],
        "config_list entry 0: bits: 9 is not a bit width that can be quantized to; give an integer from 2 to 8",
    ),
    "fused module that does not exist": (
        [{**CONV, "fuse_names": [("body.0.conv1", "body.0.rleu")]}],
        "config_list entry 0: fuse_names: the network has no module 'body.0.rleu'; did you mean 'body.0.relu'?",
    ),
    "fused into a float convolution": (
        [{**CONV, "fuse_names": [("body.0.conv2", "body.0.relu")]}],
        "config_list: fuse_names: 'body.0.conv2' is not quantized, so nothing folds into it; "
        "quantized are body.0.conv1",
    ),
    "empty": ([], "quantization: config_list: it is empty; name modules in it, or delete it to get the preset"),
}


@pytest.mark.parametrize(("entries", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_entry_is_one_exact_sentence(entries: list[dict[str, Any]], message: str) -> None:
    model, given = network(), copy.deepcopy(entries)
    keys = list(model.state_dict())
    with pytest.raises(OptionError) as caught:
        make("ddtb", model, entries)
    assert str(caught.value) == message
    assert entries == given and list(model.state_dict()) == keys, "nothing is changed"
    assert not any(hasattr(module, "_nni_wrapper") for module in model.modules())


INPUTS = {**CONV, "target_names": ["_input_0"]}
EITHER_DOOR: dict[str, tuple[str, dict[str, Any], str]] = {
    "text for a switch": (
        "ddtb",
        {**CONV, "limit_levels": "no"},
        "limit_levels: 'no' is not allowed; give true or false",
    ),
    "no calibration": (
        "ddtb",
        {**CONV, "calibration": ""},
        "calibration: '' is not known; give one of mae, mse, percentile, official",
    ),
    "another method's calibration": (
        "pams",
        {**CONV, "calibration": "percentile"},
        "calibration: 'percentile' is not known; give one of max, mae, mse, official",
    ),
    "range of a target": (
        "pams",
        {**CONV, "target_settings": {"weight": {**INT4, "weight_range": "meen"}}},
        "weight_range: 'meen' is not known; give one of mse, learned, learned_per_channel, learned_midrise, "
        "max, official; "
        "did you mean 'mse'?",
    ),
    "percentile": (
        "ddtb",
        {**CONV, "percentile": "99"},
        "percentile: '99' is not allowed; give a number above 50, up to 100",
    ),
    "statistics": (
        "ddtb",
        {**CONV, "gate_statistics": "per_image"},
        "gate_statistics: 'per_image' is not known; give one of per_sample, official; did you mean 'per_sample'?",
    ),
    "setting of weights": (
        "pams",
        {**INPUTS, "weight_range": "mse"},
        "weight_range: it has no effect on _input_0; delete it, or add weight to them",
    ),
    "setting of activations": (
        "ddtb",
        {**CONV, "target_settings": {"weight": INT4}, "dynamic_ratio": 0.5},
        "dynamic_ratio: it has no effect on weight; delete it, or add _input_0 to them",
    ),
    "no target": (
        "pams",
        {**CONV, "target_names": []},
        "target_names: it is empty; name a target, or delete it to get _input_0 and weight",
    ),
}


def through_basicsr(method: str, entries: list[dict[str, Any]], **options: Any) -> Any:
    return insert_quantizers(network(), options_from({"quantizer": method, "config_list": entries, **options}))


def through_nni(method: str, entries: list[dict[str, Any]], **options: Any) -> Any:
    return make(method, network(), entries, **options)


@pytest.mark.parametrize("door", [through_basicsr, through_nni])
@pytest.mark.parametrize(("method", "entry", "message"), EITHER_DOOR.values(), ids=EITHER_DOOR)
def test_either_door_refuses_the_same_settings(door: Any, method: str, entry: dict[str, Any], message: str) -> None:
    right = {"op_names": ["body.0.conv2"], **INT4}
    with pytest.raises(OptionError) as caught:
        door(method, [right, entry])
    assert str(caught.value) == f"config_list entry 1: {message}"


@pytest.mark.parametrize("door", [through_basicsr, through_nni])
def test_something_must_be_quantized(door: Any) -> None:
    with pytest.raises(OptionError) as caught:
        door("pams", [{**CONV, "apply_method": "bypass"}])
    assert str(caught.value) == (
        "config_list: no tensor is quantized; name a target whose apply_method is not 'bypass'"
    )


def test_entries_behind_a_wiring_keep_their_number() -> None:
    """The preset stands for several entries."""
    for wrong, message in (
        ({"percentile": 30}, "percentile: 30 is not allowed; give a number above 50, up to 100"),
        ({"fuse_names": [("conv_last", "x")]}, "fuse_names: the network has no module 'x'"),
    ):
        with pytest.raises(OptionError, match=rf"^config_list entry 1: {message}"):
            make("ddtb", network(), [{"wiring": "official", **INT4}, {"op_names": ["conv_last"], **INT4, **wrong}])


@pytest.mark.parametrize("door", [through_basicsr, through_nni])
@pytest.mark.parametrize("method", ["pams", "ddtb"])
def test_a_profile_gives_each_entry_what_its_targets_take(door: Any, method: str) -> None:
    legacy = {"op_names": ["body.0.conv2"], "quant_types": ["weight"], "quant_bits": 4}
    for entry in (INPUTS, legacy, {**CONV, "target_settings": {"weight": INT4}}):
        door(method, [entry], profile="official")


def test_a_wiring_needs_a_preset() -> None:
    with pytest.raises(OptionError) as caught:
        make("pams", OwnNetwork(), [{"wiring": "paper", **INT4}])
    assert str(caught.value) == (
        "config_list entry 0: network 'OwnNetwork' has no preset; allowed are EDSR, MSRResNet, RDN, SRResNet, "
        "or write a config_list that names its modules"
    )


def test_a_fused_quantizer_leaves_the_others_targets_alone() -> None:
    pams = make("pams", network(), [CONV])
    with pytest.raises(OptionError) as caught:
        srq_nni.DDTBQuantizer.from_compressor(pams, [{"op_types": ["Conv2d"], **INT4}])
    assert str(caught.value) == (
        "config_list: target '_input_0' of 'body.0.conv1' is quantized already, by the quantizer that this one is "
        "fused with; exclude it here or there"
    )


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(
        OptionError, match=r"^quantization: key 'calibration_iter' is not known; .*'calibration_iters'\?$"
    ):
        make("pams", network(), [CONV], calibration_iter=3)


def test_a_feature_belongs_to_the_distiller() -> None:
    with pytest.raises(OptionError) as caught:
        make("pams", network(), [CONV], feature="upsample")
    assert str(caught.value) == ("feature: the quantizer compares none; give it to skt_config_list(model, feature=..)")


def test_a_wrapped_network_comes_too_late() -> None:
    with pytest.raises(QuantizationError) as caught:
        make("pams", DataParallel(network()), [CONV])
    assert str(caught.value) == (
        "the network is a DataParallel; make the quantizer first and wrap afterwards: DistributedDataParallel(model)"
    )
