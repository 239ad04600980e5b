"""The quantization block: every form that is allowed, and the exact sentence for each that is not."""

from __future__ import annotations

from typing import Any

import pytest

from srq_nni.compression.options import QuantizationOptions, options_from
from srq_nni.errors import OptionError
from srq_nni.quantization.targets import INPUT, OUTPUT, WEIGHT

BLOCK_KEYS = ", ".join(QuantizationOptions.model_fields)
BITS = "is not a bit width that can be quantized to; give an integer from 2 to 8"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 1}, f"bits: 1 {BITS}"),
        ({"bits": 9}, f"bits: 9 {BITS}"),
        ({"bits": 32}, f"bits: 32 {BITS}"),
        ({"bits": "4"}, f"bits: '4' {BITS}"),
        ({"bits": 4.0}, f"bits: 4.0 {BITS}"),
        ({"bits": True}, f"bits: True {BITS}"),
        ({"bits": None}, f"bits: None {BITS}"),
        ({"bits": [4]}, f"bits: [4] {BITS}"),
        ({"bits": {"weight": 4}}, "bits: keys weight are not allowed; give both 'weight' and 'activation'"),
        (
            {"bits": {"weight": 4, "act": 4}},
            "bits: keys weight, act are not allowed; give both 'weight' and 'activation'",
        ),
        ({"bits": {"weight": 4, "activation": 9}}, f"bits.activation: 9 {BITS}"),
        ({"quantizer": "pasm"}, "quantizer: 'pasm' is not known; give one of pams, ddtb; did you mean 'pams'?"),
        ({"quantizer": "lsq"}, "quantizer: 'lsq' is not known; give one of pams, ddtb"),
        ({"quantizer": 3}, "quantizer: 3 is not allowed; give one of pams, ddtb"),
        (
            {"wiring": "deplyo"},
            "wiring: 'deplyo' is not known; give one of paper, deploy, tensorrt, official; did you mean 'deploy'?",
        ),
        ({"wirring": "paper"}, f"key 'wirring' is not known; allowed are {BLOCK_KEYS}; did you mean 'wiring'?"),
        ({"config_list": []}, "config_list: it is empty; name modules in it, or delete it to get the preset"),
        ({"config_list": 3}, "config_list: 3 is not allowed; give a list"),
        ({"config_list": ["conv"]}, "config_list[0]: 'conv' is not a block of keys; add its keys below it, indented"),
        (
            {"config_list": [{"op_names": ["conv_first"]}], "calibration": "mse"},
            "calibration: it has no effect beside config_list; give it in target_settings there",
        ),
        (
            {"config_list": [{"op_names": ["conv_first"]}], "bits": 4},
            "bits: it has no effect beside config_list; give quant_dtype there",
        ),
        (
            {"config_list": [{"op_names": ["conv_first"]}], "wiring": "paper"},
            "wiring: it has no effect beside config_list; its entries are the wiring",
        ),
        ({"percentile": 95}, "percentile: pams has no such setting; delete it"),
        (
            {"quantizer": "ddtb", "percentile": 95, "calibration": "mse", "weight_range": "mse"},
            "percentile: calibration is mse and weight_range mse; delete it, or one of them",
        ),
        *(
            ({"calibration_iters": wrong}, f"calibration_iters: {wrong!r} is not allowed; give a whole number from 0")
            for wrong in (-1, 1.5, True, "10", [], None)
        ),
        (
            {"quantizer": "ddtb", "dynamic_ratio": 2},
            "dynamic_ratio: 2 is not allowed; give a number from 0 to 1",
        ),
        ({"quantizer": "ddtb", "limit_levels": 1}, "limit_levels: 1 is not allowed; give true or false"),
        ({"feature": ["conv_first"]}, "feature: ['conv_first'] is not allowed; give a text"),
    ],
)
def test_a_wrong_block_is_one_exact_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        options_from({"quantizer": "pams"} | ({} if change.get("config_list") else {"bits": 4}) | change)
    assert str(caught.value) == f"quantization: {message}"


@pytest.mark.parametrize("key", ["quantizer", "bits"])
def test_a_missing_key_is_named(key: str) -> None:
    block = {"quantizer": "pams", "bits": 4}
    del block[key]
    with pytest.raises(OptionError) as caught:
        options_from(block)
    assert str(caught.value) == f"quantization: key '{key}' is missing; add it"


@pytest.mark.parametrize("block", [None, 4, "pams", ["pams"]])
def test_a_block_must_be_a_block(block: Any) -> None:
    with pytest.raises(OptionError) as caught:
        options_from(block)
    assert str(caught.value) == (
        f"quantization: {block!r} is not a block; give at least 'quantizer' and 'bits' below it"
    )


def test_bits_of_both_kinds() -> None:
    same = options_from({"quantizer": "pams", "bits": 3})
    mixed = options_from({"quantizer": "pams", "bits": {"weight": 2, "activation": 6}})
    assert [same.bits_of(target) for target in (WEIGHT, INPUT, OUTPUT)] == [3, 3, 3]
    assert [mixed.bits_of(target) for target in (WEIGHT, INPUT, OUTPUT)] == [2, 6, 6]
