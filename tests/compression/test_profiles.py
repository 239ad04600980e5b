"""``profile: official`` sets every switch of fidelity, a key beside it wins, and what is stored says everything."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import srq_nni
from srq_nni.archs.quantized_arch import QuantizedNetwork, build_float
from srq_nni.compression.options import QuantizationOptions, options_from
from srq_nni.compression.phases import enter_phase, observing, start_bounds_and_gates
from srq_nni.compression.profiles import PRESET, SWITCHES, apply_profile, as_written_before, default_of, resolve
from srq_nni.errors import OptionError
from srq_nni.quantization.activation import DDTBActivation
from srq_nni.quantization.layers import activation_quantizers, quantized_convolutions
from srq_nni.quantization.methods import METHODS
from srq_nni.quantization.targets import INPUT, WEIGHT

EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2}
ENTRY = {"op_names": ["conv_first"], "quant_dtype": "int4"}


def block(quantizer: str, **more: Any) -> dict[str, Any]:
    return {"quantizer": quantizer, "bits": 4, **more}


def test_the_table_is_where_the_defaults_are() -> None:
    for key, switch in SWITCHES.items():
        assert key in QuantizationOptions.model_fields
        assert switch.reason and (switch.pams or switch.ddtb)
        for quantizer in ("pams", "ddtb"):
            options = options_from(block(quantizer))
            if getattr(switch, quantizer) is not None and key not in ("calibration", "weight_range"):
                assert getattr(options, key) == switch.default(quantizer) == default_of(key, quantizer)
    for quantizer, method in METHODS.items():
        for options in (method.activation_options, method.weight_options):
            for key, value in options.items():
                assert SWITCHES[key].per_tensor
                assert SWITCHES[key].default(quantizer) in (value, PRESET)


def test_official_is_what_the_released_code_does() -> None:
    assert apply_profile({**block("pams"), "profile": "official"}) == {
        **block("pams"),
        "profile": "official",
        "wiring": "official",
        "student": "random",
        "calibration": "official",
        "calibration_iters": 1000,
        "weight_range": "official",
    }
    ddtb = apply_profile({**block("ddtb"), "profile": "official"})
    assert ddtb == {
        **block("ddtb"),
        "profile": "official",
        "wiring": "official",
        "student": "float",
        "calibration": "official",
        "calibration_iters": 1000,
        "static_iters": 4000,
        "weight_range": "percentile",
        "limit_levels": False,
        "gate_statistics": "official",
        "gate_gradient": "official",
        "gate_start": "random",
        "gate_loss_weight": pytest.approx(1 / 255),
        "observed_weights": "float",
    }


def test_official_differs_for_rdn() -> None:
    given = {**block("ddtb"), "profile": "official"}
    assert apply_profile(given, "RDN")["observed_weights"] == "quantized"
    assert apply_profile(given, "EDSR")["observed_weights"] == "float"
    assert apply_profile({**given, "observed_weights": "float"}, "RDN")["observed_weights"] == "float"
    assert "observed_weights" not in apply_profile({**block("pams"), "profile": "official"}, "RDN")
    assert "observed_weights" not in apply_profile(block("ddtb"), "RDN")


@pytest.mark.parametrize("quantizer", ["pams", "ddtb"])
def test_every_switch_can_be_said_beside_a_profile(quantizer: str) -> None:
    own = {"wiring": "deploy", "calibration_iters": 7}
    own |= {"limit_levels": True, "static_iters": 3, "gate_gradient": "straight_through"} if quantizer == "ddtb" else {}
    options = options_from({**block(quantizer), "profile": "official", **own})
    assert {key: getattr(options, key) for key in own} == own
    assert options.calibration == "official"


def test_the_switches_reach_the_quantizers() -> None:
    torch.manual_seed(0)
    model = QuantizedNetwork(EDSR, {**block("ddtb"), "profile": "official"})
    quantizers = [q for _, q in activation_quantizers(model) if isinstance(q, DDTBActivation)]
    assert len(quantizers) == 6
    for quantizer in quantizers:
        assert (quantizer.calibration, quantizer.limit_levels) == ("official", False)
    with observing(model):
        model(torch.rand(2, 3, 9, 9))
    start_bounds_and_gates(model, 0.5)
    gates = [quantizer.gate for quantizer in quantizers if quantizer.gate is not None]
    assert [(gate.statistics, gate.gradient) for gate in gates] == [("official", "official")] * 3
    assert all(q.upper.item() == 10 and q.lower.item() == -10 for q in quantizers)  # 4 bits: the start is never left
    default = QuantizationOptions(quantizer="ddtb", bits=4)
    assert (default.limit_levels, default.gate_statistics) == (True, "per_sample")


def test_weights_may_stay_quantized_under_observation() -> None:
    x = torch.rand(2, 3, 9, 9)
    outputs = []
    for weights in ("float", "quantized"):
        torch.manual_seed(0)
        model = QuantizedNetwork(EDSR, block("ddtb"))
        enter_phase(model, "observe")
        with observing(model, weights):
            outputs.append(model(x))
        with torch.no_grad():
            outputs.append(model(x))
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[1], outputs[3])
    assert not torch.equal(outputs[0], outputs[2])


def test_beside_a_config_list_the_entries_get_the_switches() -> None:
    given = {"quantizer": "ddtb", "profile": "official", "config_list": [ENTRY, {**ENTRY, "limit_levels": True}]}
    options = options_from(given)
    assert options.config_list is not None
    assert options.config_list[0] == {
        "calibration": "official",
        "weight_range": "percentile",
        "limit_levels": False,
        "gate_statistics": "official",
        "gate_gradient": "official",
        "gate_start": "random",
        **ENTRY,
    }
    assert options.config_list[1]["limit_levels"] is True
    assert options.calibration_iters == 1000
    assert given["config_list"][0] == ENTRY
    wired = [{"wiring": "paper", "quant_dtype": "int4"}]
    assert apply_profile({**given, "config_list": wired})["config_list"] == wired


def test_config_list_knows_profiles() -> None:
    official = srq_nni.config_list("EDSR", "ddtb", 4, profile="official")
    same = srq_nni.config_list(
        "EDSR", "ddtb", 4, "official", calibration="official", limit_levels=False, weight_range="percentile",
        gate_statistics="official", gate_gradient="official",
    )  # fmt: skip
    assert official == same
    settings = official[2]["target_settings"]
    assert settings[WEIGHT] == {
        "quant_dtype": "int4",
        "limit_levels": False,
        "percentile": 99.0,
        "weight_range": "percentile",
    }
    assert set(settings[INPUT]) == {
        "quant_dtype", "calibration", "limit_levels", "gate_statistics", "gate_gradient", "percentile"
    }  # fmt: skip
    assert srq_nni.config_list("EDSR", "ddtb", 4, "paper", profile="official")[0]["target_names"] == [INPUT, WEIGHT]


BY_HAND = {"op_names_re": [r"body\.\d+\.conv2$"], "quant_dtype": "int4"}
BY_WIRING = {"wiring": "official", "quant_dtype": "int4"}


@pytest.mark.parametrize("entry", [BY_HAND, BY_WIRING])
def test_the_quantizers_for_nni_know_profiles(entry: dict[str, Any]) -> None:
    given = [dict(entry)]
    quantizer = srq_nni.DDTBQuantizer(build_float(EDSR), given, profile="official", static_iters=7)
    assert given == [entry]
    assert (quantizer.options.calibration_iters, quantizer.options.static_iters) == (1000, 7)
    found = [q for _, q in activation_quantizers(quantizer.bound_model) if isinstance(q, DDTBActivation)]
    assert len(found) == {"BY_HAND": 2, "BY_WIRING": 6}["BY_HAND" if entry is BY_HAND else "BY_WIRING"]
    for q in found:
        assert (q.calibration, q.limit_levels) == ("official", False)
        assert (q.gate_statistics, q.gate_gradient, q.gate_start) == ("official", "official", "random")
    own = srq_nni.DDTBQuantizer(build_float(EDSR), [{**entry, "calibration": "percentile"}], profile="official")
    assert {q.calibration for q in own.clock.quantizers if isinstance(q, DDTBActivation)} == {"percentile"}
    assert srq_nni.PAMSQuantizer(build_float(EDSR), given, profile="official").options.calibration_iters == 1000


def test_the_profile_of_rdn_observes_quantized_weights_through_nni() -> None:
    torch.manual_seed(0)
    float_net = build_float({"type": "RDN", "num_feat": 4, "num_block": 1, "num_layer": 2, "num_grow_ch": 4})
    x = torch.rand(1, 3, 8, 8)
    seen = []
    for options in ({}, {"profile": "official"}, {"profile": "official", "observed_weights": "float"}):
        model = copy.deepcopy(float_net)
        srq_nni.DDTBQuantizer(model, [BY_WIRING], **options)
        seen.append(model(x).detach())
    assert torch.equal(seen[0], float_net(x)) and torch.equal(seen[2], seen[0])
    assert not torch.equal(seen[1], seen[0])


def test_the_student_of_nni_is_what_it_is_given() -> None:
    with pytest.raises(OptionError) as caught:
        srq_nni.PAMSQuantizer(build_float(EDSR), [ENTRY], student="random")
    assert str(caught.value) == (
        "student: the quantizer starts from the weights that the network has; load them before"
    )


PERCENTILE = {"calibration": "percentile", "weight_range": "percentile"}


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ({"bits": 4}, {"calibration": "mse", "weight_range": "learned"}),
        ({"bits": 4, "weight_range": "mse"}, {"calibration": "mse", "weight_range": "mse"}),
        ({"bits": 4, "percentile": 97}, PERCENTILE),
        ({"bits": 4, "percentile": 97, "calibration": "mse"}, {**PERCENTILE, "calibration": "mse"}),
        ({"bits": 4, "percentile": 97, "profile": "official"}, {**PERCENTILE, "calibration": "official"}),
    ],
)
def test_a_percentile_alone_is_stored_as_what_it_means(given: dict[str, Any], stored: dict[str, str]) -> None:
    block = resolve({"quantizer": "ddtb", **given})
    assert {key: block[key] for key in stored} == stored


@pytest.mark.parametrize(
    ("entry", "calibration", "weight_range"),
    [
        ({}, "mse", "learned"),
        ({"weight_range": "mse"}, "mse", "mse"),
        ({"percentile": 97}, "percentile", "percentile"),
        ({"percentile": 97, "weight_range": "mse"}, "percentile", "mse"),
        ({"target_settings": {INPUT: {"percentile": 97}}}, "percentile", "learned"),
        ({"target_settings": {WEIGHT: {"percentile": 97}}}, "mse", "percentile"),
        ({"calibration": "mse", "target_settings": {INPUT: {"percentile": 97}}}, "mse", "learned"),
    ],
)
def test_an_entry_means_the_same_when_it_is_stored(entry: dict[str, Any], calibration: str, weight_range: str) -> None:
    targets = {target: {"quant_dtype": "int4"} for target in (INPUT, WEIGHT)}
    settings = {target: {**targets[target], **entry.get("target_settings", {}).get(target, {})} for target in targets}
    given = {"quantizer": "ddtb", "config_list": [{**ENTRY, **entry, "target_settings": settings}]}
    for block in (given, resolve(given), resolve(resolve(given))):
        (conv,) = (layer for _, layer in quantized_convolutions(QuantizedNetwork(EDSR, block)))
        assert (conv.input_quantizer.calibration, conv.weight_quantizer.weight_range) == (calibration, weight_range)


@pytest.mark.parametrize("method", ["pams", "ddtb"])
def test_settings_that_older_files_hold_in_vain_are_passed_over(method: str) -> None:
    """They wrote every default into every entry, those of weights into entries of inputs alone as well."""
    entry = {**ENTRY, "target_names": [INPUT]}
    written = resolve({"quantizer": method, "config_list": [entry]})
    assert "weight_range" not in written["config_list"][0] and "calibration" in written["config_list"][0]
    older = {**written, "config_list": [{**written["config_list"][0], "weight_range": "mse"}]}
    for stored in (older, as_written_before(older)):
        assert resolve(stored) == written, "a checkpoint fits the options that it was made with"
        network = QuantizedNetwork(EDSR, stored)
        assert network.conv_first.weight_quantizer is None and network.conv_first.input_quantizer is not None
    with pytest.raises(OptionError, match="entry 0: weight_range: it has no effect on _input_0"):
        QuantizedNetwork(EDSR, {"quantizer": method, "config_list": [{**entry, "weight_range": "mse"}]})


@pytest.mark.parametrize("quantizer", ["pams", "ddtb"])
@pytest.mark.parametrize("profile", ["default", "official"])
def test_what_is_stored_does_not_depend_on_the_table(
    quantizer: str, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given in (block(quantizer), {"quantizer": quantizer, "config_list": [ENTRY]}):
        stored = resolve({**given, "profile": profile}, "RDN")
        before = options_from(stored)
        assert "profile" not in stored and resolve(stored) == stored
        with monkeypatch.context() as patch:
            for key, switch in SWITCHES.items():
                changed = {"pams": switch.pams and ("x", "x"), "ddtb": switch.ddtb and ("x", "x")}
                if key not in ("percentile", "dynamic_ratio"):
                    patch.setitem(SWITCHES, key, type(switch)(switch.reason, **changed, per_tensor=switch.per_tensor))
            assert resolve(stored) == stored
            assert options_from(stored) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"profile": "offical"},
            "profile: 'offical' is not known; give one of default, official; did you mean 'official'?",
        ),
        ({"profile": 3}, "profile: 3 is not known; give one of default, official"),
        (
            {"gate_gradient": "straight"},
            "gate_gradient: 'straight' is not known; give one of straight_through, official; "
            "did you mean 'straight_through'?",
        ),
        (
            {"gate_statistics": "batch"},
            "gate_statistics: 'batch' is not known; give one of per_sample, official",
        ),
        ({"student": "x"}, "student: 'x' is not known; give one of float, random"),
        ({"observed_weights": "int"}, "observed_weights: 'int' is not known; give one of float, quantized"),
        ({"limit_levels": "no"}, "limit_levels: 'no' is not allowed; give true or false"),
        (
            {"quantizer": "pams", "limit_levels": True},
            "limit_levels: pams has no such setting; delete it",
        ),
        (
            {"quantizer": "pams", "gate_gradient": "official"},
            "gate_gradient: pams has no gates; delete it, or set quantizer: ddtb",
        ),
    ],
)
def test_a_wrong_switch_is_one_exact_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        options_from({**block("ddtb"), **change})
    assert str(caught.value) == f"quantization: {message}"
