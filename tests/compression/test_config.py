"""The quantization block and config_lists: every form that is allowed, and the exact sentence for each that is not."""

from __future__ import annotations

from typing import Any

import pytest

import srq_nni
from srq_nni.archs.quantized_arch import build_float
from srq_nni.compression.blocks import expose_sites
from srq_nni.compression.config import sites_config_list
from srq_nni.compression.entries import expand_entries
from srq_nni.compression.options import options_from
from srq_nni.compression.sites import Site, quantization_sites
from srq_nni.errors import OptionError, SRQError
from srq_nni.quantization.targets import INPUT, OUTPUT, WEIGHT

EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2}
INT4 = {"quant_dtype": "int4"}


def sites(*entries: dict[str, Any], method: str = "pams") -> list[tuple[str, str, int]]:
    found = quantization_sites(expose_sites(build_float(EDSR)), entries, method)
    return [(site.module, site.target, site.bits) for site in found]


def both(*modules: str, bits: int = 4) -> list[tuple[str, str, int]]:
    return [(module, target, bits) for module in modules for target in (INPUT, WEIGHT)]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"op_names": ["body.1.conv1"]}, both("body.1.conv1")),
        ({"op_names": ["conv_last", "conv_first"]}, both("conv_first", "conv_last")),
        ({"op_names_re": [r"body\.\d+\.conv1"]}, both("body.0.conv1", "body.1.conv1")),
        (
            {"op_names_re": [r"body\.0\.", r"body\.1\."], "op_types": ["Conv2d"], "exclude_op_names_re": [r".*conv2"]},
            both("body.0.conv1", "body.1.conv1"),
        ),
        (
            {"op_types": ["Conv2d"], "exclude_op_names": ["conv_first", "upsample.0"], "exclude_op_names_re": ["body"]},
            both("conv_after_body", "conv_last"),
        ),
        ({"op_types": ["Conv2d"], "exclude_op_names_re": [r"body", r"conv_", r"upsample"]}, None),
        ({"op_names_re": [r"upsample"], "exclude_op_types": ["PixelShuffle", "Upsample"]}, both("upsample.0")),
    ],
)
def test_selectors(entry: dict[str, Any], expected: list[tuple[str, str, int]] | None) -> None:
    if expected is None:
        with pytest.raises(OptionError, match="together select no module; leave one of them out"):
            sites({**entry, **INT4})
    else:
        assert sites({**entry, **INT4}) == expected


@pytest.mark.parametrize("name", ["_input_", "_input_0"])
@pytest.mark.parametrize("setting", ["_input_", "_input_0"])
def test_aliases_of_the_input_mean_the_same(name: str, setting: str) -> None:
    entry = {
        "op_names": ["conv_first"],
        "target_names": [name, "weight"],
        "target_settings": {setting: {"quant_dtype": "int8"}, "weight": {"quant_dtype": "int2"}},
    }
    assert sites(entry) == [("conv_first", INPUT, 8), ("conv_first", WEIGHT, 2)]


def test_output_alias_and_a_module_that_is_no_convolution() -> None:
    entry = {"op_names": ["body.0", "body.1.relu"], "target_names": ["_output_"], **INT4}
    assert sites(entry) == [("body.0", OUTPUT, 4), ("body.1.relu", OUTPUT, 4)]


def test_targets_may_be_named_by_their_settings_alone() -> None:
    entry = {"op_names": ["conv_first"], "target_settings": {"weight": {"quant_dtype": "int3"}}}
    assert sites(entry) == [("conv_first", WEIGHT, 3)]


def test_entries_mix_bits_and_come_out_in_the_order_of_the_network() -> None:
    found = sites(
        {"op_names": ["body.1.conv2"], "quant_dtype": "int8"},
        {"op_names": ["body.0.conv1"], "target_names": ["weight"], "quant_dtype": "int2"},
        {"op_names": ["body.0.conv1"], "target_names": ["_input_"], "quant_dtype": "int5"},
    )
    assert found == [("body.0.conv1", INPUT, 5), ("body.0.conv1", WEIGHT, 2), *both("body.1.conv2", bits=8)]


def test_settings_reach_the_quantizer() -> None:
    entry = {
        "op_names": ["conv_first"],
        "target_names": ["_input_", "weight"],
        "target_settings": {
            "_input_": {"quant_dtype": "int4", "percentile": 97.0, "calibration": "official", "limit_levels": False},
            "weight": {"quant_dtype": "int4", "percentile": 100.0},
        },
    }
    first, second = quantization_sites(build_float(EDSR), [entry], "ddtb")
    assert first.options == {"percentile": 97.0, "calibration": "official", "limit_levels": False}
    assert second == Site("conv_first", WEIGHT, 4, {"percentile": 100.0})


KEYS = (
    "op_types, op_names, op_names_re, exclude_op_types, exclude_op_names, exclude_op_names_re, "
    "target_names, target_settings, fuse_names, quant_dtype, quant_scheme, granularity, apply_method, "
    "calibration, percentile, limit_levels, gate_statistics, gate_gradient, gate_start, dynamic_ratio, "
    "weight_range"
)
NAMES = "conv_first, body, body.0, body.0.conv1, body.0.conv2, body.0.relu, body.0.shortcut, body.0.branch and 11 more"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"op_names": ["body.0.conv3"]}, "op_names: 'body.0.conv3' selects no module; did you mean 'body.0.conv2'?"),
        (
            {"op_names": ["conv_first", "zzz"]},
            f"op_names: 'zzz' selects no module; the network has {NAMES}",
        ),
        (
            {"op_names_re": ["body", "boby.*conv1"]},
            "op_names_re: 'boby.*conv1' selects no module; did you mean 'body.1.conv1'?",
        ),
        ({"op_types": ["Conv2D"]}, "op_types: 'Conv2D' selects no module; did you mean 'Conv2d'?"),
        (
            {"op_types": ["Conv2d"], "exclude_op_names": ["conv_frist"]},
            "exclude_op_names: 'conv_frist' selects no module; did you mean 'conv_first'?",
        ),
        (
            {"op_names_re": ["("]},
            "op_names_re: '(' is not a pattern (missing ), unterminated subpattern at position 0); mend it",
        ),
        ({"op_names": "conv_first"}, "op_names: 'conv_first' is not a list of names; write [conv_first]"),
        ({"op_names_re": [None]}, "op_names_re: [None] is not a list of names; write [[None]]"),
        ({"op_name": ["body"]}, f"key 'op_name' is not known; allowed are {KEYS}; did you mean 'op_names'?"),
        ({}, "none of op_types, op_names, op_names_re is given; name the modules to quantize"),
        (
            {"op_names": ["conv_first"], "target_names": "weight"},
            "target_names: 'weight' is not a list of names; write [weight]",
        ),
        (
            {"op_names": ["conv_first"], "target_names": ["weight"], "target_settings": {"wieght": INT4}},
            "target 'wieght' of module 'conv_first' (Conv2d) is not known; give one of weight, _input_0, _output_0; "
            "did you mean 'weight'?",
        ),
        (
            {"op_names": ["conv_first"], "target_names": ["weight"], "target_settings": {"_input_": INT4}},
            "target_settings: '_input_' is not one of target_names (weight); add it there",
        ),
        (
            {"op_names": ["conv_first"], "target_settings": ["weight"]},
            "target_settings: ['weight'] is not a block of targets; give quant_dtype below each",
        ),
        (
            {"op_names": ["conv_first"], "target_settings": {"weight": "int4"}},
            "target_settings: {'weight': 'int4'} is not a block of targets; give quant_dtype below each",
        ),
        (
            {"op_names": ["conv_first"], "quant_dtype": "int9"},
            "quant_dtype 'int9' is not allowed; give 'int2' to 'int8'",
        ),
        ({"op_names": ["conv_first"], "quant_dtype": 4}, "quant_dtype 4 is not allowed; give 'int2' to 'int8'"),
        ({"op_names": ["conv_first"], "quant_dtype": None}, "quant_dtype None is not allowed; give 'int2' to 'int8'"),
        (
            {"op_names": ["conv_first"], "target_settings": {"_input_": {**INT4, "percentil": 99}}},
            "setting 'percentil' of target '_input_' is not known to ddtb; "
            "allowed are quant_dtype, calibration, percentile, limit_levels, gate_statistics, "
            "gate_gradient, gate_start, dynamic_ratio; did you mean 'percentile'?",
        ),
        (
            {"op_names": ["conv_first"], "target_settings": {"weight": {**INT4, "granularity": "per_channel"}}},
            "granularity: 'per_channel' is not allowed; delete it: ddtb is per tensor, and weights with weight_range: "
            "learned_per_channel per output channel",
        ),
        (
            {"op_names": ["conv_first"], "apply_method": "clamp_round"},
            "apply_method: 'clamp_round' is NNI's own arithmetic and ddtb brings another; delete the key, or give "
            "'bypass' to leave the target in floating point",
        ),
        (
            {"op_names": ["conv_first"], "quant_scheme": "symmetric"},
            "quant_scheme: 'symmetric' is not allowed; ddtb is affine: delete it",
        ),
    ],
)
def test_a_wrong_entry_is_one_exact_sentence(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        sites({**INT4, **entry}, method="ddtb")
    assert str(caught.value) == f"config_list entry 0: {message}"


def test_a_target_may_be_named_only_once() -> None:
    entry = {"op_names_re": [r"body\.0\.conv"], **INT4}
    with pytest.raises(OptionError) as caught:
        sites(entry, {"op_names": ["body.0.conv2"], "target_names": ["weight"], **INT4})
    assert str(caught.value) == (
        "config_list entry 1: target 'weight' of 'body.0.conv2' is quantized twice; name it once"
    )


def test_an_unknown_target_names_module_and_targets() -> None:
    entry = {"op_names": ["conv_first"], "target_names": ["_input_1"], **INT4}
    with pytest.raises(OptionError) as caught:
        sites(entry)
    assert str(caught.value) == (
        "config_list entry 0: target '_input_1' of module 'conv_first' (Conv2d) does not exist; "
        "its forward has the inputs _input_0 (input)"
    )


def test_the_forms_of_an_entry_that_nni_documents() -> None:
    """Version 2 keys, settings beside target_settings, bypass, and ``_input_`` with the name of the argument."""
    legacy = {"op_names": ["conv_first"], "quant_types": ["input", "weight"], "quant_bits": {"input": 8, "weight": 4}}
    assert sites(legacy) == [("conv_first", INPUT, 8), ("conv_first", WEIGHT, 4)]
    entry = {"op_names": ["conv_first"], "target_names": ["_input_input", "weight"], "percentile": 95.0, **INT4}
    found = quantization_sites(expose_sites(build_float(EDSR)), [entry], "ddtb")
    assert found == [Site("conv_first", t, 4, {"percentile": 95.0}) for t in (INPUT, WEIGHT)]
    entry = {
        "op_names": ["conv_first"],
        "target_settings": {"weight": INT4, "_input_": {**INT4, "apply_method": "bypass"}},
    }
    assert sites(entry) == [("conv_first", WEIGHT, 4)]
    entry = {"op_names": ["conv_first"], "quant_scheme": "symmetric", "granularity": "default", **INT4}
    assert len(sites(entry)) == 2


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            ("EDRS", "pams", 4),
            {},
            "network 'EDRS' has no preset; allowed are EDSR, MSRResNet, RDN, SRResNet, "
            "or write a config_list that names its modules; did you mean 'EDSR'?",
        ),
        (("EDSR", "pams", 9), {}, "quantization: bits: 9 is not a bit width that can be quantized to; give"),
        (("EDSR", "dbtb", 4), {}, "quantization: quantizer: 'dbtb' is not known; give one of pams, ddtb; did you mean"),
        (("EDSR", "pams", 4, "papper"), {}, "quantization: wiring: 'papper' is not known; give one of"),
        (("EDSR", "ddtb", 4), {"percentil": 95}, "quantization: key 'percentil' is not known; allowed are"),
    ],
)
def test_config_list_refuses(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        srq_nni.config_list(*arguments, **options)
    assert str(caught.value).startswith(message)


PHASES = "it has no effect in a config_list; give it to {}, or in the quantization block"
ELSEWHERE: list[tuple[str, dict[str, Any], str]] = [
    ("ddtb", {"calibration_iters": 5}, PHASES.format("DDTBQuantizer")),
    ("pams", {"calibration_iters": 5}, PHASES.format("PAMSQuantizer")),
    ("ddtb", {"static_iters": 7}, PHASES.format("DDTBQuantizer")),
    ("ddtb", {"gate_loss_weight": 3.0}, PHASES.format("DDTBQuantizer")),
    ("ddtb", {"observed_weights": "quantized"}, PHASES.format("DDTBQuantizer")),
    (
        "ddtb",
        {"student": "random"},
        "it has no effect in a config_list; load the weights before, or give it in the quantization block",
    ),
    ("pams", {"feature": "upsample"}, PHASES.replace("{}", "skt_config_list")),
]


@pytest.mark.parametrize(("method", "options", "message"), ELSEWHERE)
def test_config_list_says_where_an_option_belongs(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        srq_nni.config_list("EDSR", method, 4, **options)
    assert str(caught.value) == f"{next(iter(options))}: {message}"


def test_config_list_writes_the_share_of_gates() -> None:
    """At 8 bits beside narrower tensors there is none, as with the key in the quantization block."""

    def shares(*arguments: Any, **options: Any) -> list[tuple[str, Any, Any]]:
        entries = srq_nni.config_list("EDSR", "ddtb", *arguments, **options)
        items = [item for entry in entries for item in entry["target_settings"].items()]
        return [(target, setting["quant_dtype"], setting.get("dynamic_ratio")) for target, setting in items]

    assert shares(4, dynamic_ratio=0.9) == [(INPUT, "int4", 0.9), (WEIGHT, "int4", None)]
    ends = [(INPUT, "int8", None), (WEIGHT, "int8", None)]
    assert shares(4, dynamic_ratio=0.0, tail=8) == [(INPUT, "int4", 0.0), (WEIGHT, "int4", None), *ends]
    assert shares(8, dynamic_ratio=0.9) == [(INPUT, "int8", 0.9), (WEIGHT, "int8", None)]
    wiring = {"wiring": "official", "quant_dtype": "int4", "tail": 8, "dynamic_ratio": 1}
    expanded = [entry for _, entry in expand_entries(build_float(EDSR), [wiring], "ddtb")]
    assert expanded == srq_nni.config_list("EDSR", "ddtb", 4, "official", tail=8, dynamic_ratio=1)


def test_a_users_config_list_is_taken_as_it_is() -> None:
    entries = [{"op_names": ["conv_first"], **INT4}]
    options = options_from({"quantizer": "pams", "config_list": entries})
    assert sites_config_list("no preset needed", options) == entries


def test_every_error_is_an_srq_error() -> None:
    assert issubclass(OptionError, SRQError) and issubclass(OptionError, ValueError)
