"""The presets as config_lists: NNI's own format, accepted by NNI's own schema and selector."""

from __future__ import annotations

from typing import Any

import pytest
from nni.compression.base.config import select_modules_by_config
from torch import nn

import srq_nni
from srq_nni.archs.quantized_arch import build_float
from srq_nni.compression.blocks import expose_sites
from srq_nni.compression.options import options_from
from srq_nni.compression.presets import PRESETS, WIRINGS, find_preset
from srq_nni.compression.sites import quantization_sites
from srq_nni.errors import OptionError
from srq_nni.quantization.layers import INPUT, WEIGHT

TWO_BLOCKS = {"num_feat": 8, "num_block": 2, "upscale": 2}
SMALL: dict[str, dict[str, Any]] = {
    "EDSR": {**TWO_BLOCKS, "num_in_ch": 3, "num_out_ch": 3},
    "MSRResNet": TWO_BLOCKS,
    "RDN": {**TWO_BLOCKS, "num_layer": 3, "num_grow_ch": 4},
    "SRResNet": TWO_BLOCKS,
}
RDN = {**SMALL["RDN"], "type": "RDN"}


def settings(entries: list[dict[str, Any]], target: str) -> list[dict[str, Any]]:
    return [entry["target_settings"][target] for entry in entries if target in entry["target_names"]]


@pytest.mark.parametrize("arch", PRESETS)
@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("method", ["pams", "ddtb"])
def test_presets_have_nnis_keys_only(arch: str, wiring: str, method: str) -> None:
    entries = srq_nni.config_list(arch, method, {"weight": 2, "activation": 8}, wiring)
    assert entries
    for entry in entries:
        assert set(entry) == {"op_names_re", "target_names", "quant_dtype", "target_settings"}
        assert set(entry["target_settings"]) == set(entry["target_names"])
    assert {setting["quant_dtype"] for setting in settings(entries, WEIGHT)} == {"int2"}
    assert {setting["quant_dtype"] for setting in settings(entries, INPUT)} == {"int8"}


@pytest.mark.parametrize("arch", PRESETS)
def test_patterns_end_where_they_should(arch: str) -> None:
    """Ten or more blocks: ``body.1`` must not stand for ``body.10``, and no entry may overlap another."""
    network = {"type": arch, "num_feat": 4, "num_block": 11, "upscale": 2}
    network |= {"num_layer": 11, "num_grow_ch": 4} if arch == "RDN" else {}
    network |= {"num_in_ch": 3, "num_out_ch": 3} if arch == "EDSR" else {}
    for wiring in WIRINGS:
        model = expose_sites(build_float(network))
        sites = quantization_sites(model, srq_nni.config_list(arch, "pams", 4, wiring), "pams")
        per_block = 2 if arch != "RDN" else 12
        extra = 0 if arch != "RDN" else 2
        assert sum(site.target == WEIGHT for site in sites) == 11 * per_block + extra


def test_nni_selects_the_same_modules() -> None:
    model = expose_sites(build_float(RDN))
    entries = srq_nni.config_list(model, "pams", 4, "official")
    chosen = {name for entry in entries for name in select_modules_by_config(model, entry)[0]}
    assert chosen == {site.module for site in quantization_sites(model, entries, "pams")}


def test_a_network_and_its_name_give_the_same_list() -> None:
    assert srq_nni.config_list(build_float(RDN), "ddtb", 4) == srq_nni.config_list("RDN", "ddtb", 4)


@pytest.mark.parametrize(
    ("arch", "percentile", "weight_percentile"),
    [("EDSR", 99.0, 99.0), ("MSRResNet", 99.0, 99.0), ("SRResNet", 99.0, 99.0), ("RDN", 95.0, 100.0)],
)
def test_published_percentiles(arch: str, percentile: float, weight_percentile: float) -> None:
    published = {"calibration": "percentile", "weight_range": "percentile"}
    entries = srq_nni.config_list(arch, "ddtb", 4, **published)
    assert {setting["percentile"] for setting in settings(entries, INPUT)} == {percentile}
    assert {setting["percentile"] for setting in settings(entries, WEIGHT)} == {weight_percentile}
    own = srq_nni.config_list(arch, "ddtb", 4, percentile=97)
    assert {setting["percentile"] for target in (INPUT, WEIGHT) for setting in settings(own, target)} == {97.0}
    assert settings(own, INPUT)[0]["calibration"] == settings(own, WEIGHT)[0]["weight_range"] == "percentile"
    ends = srq_nni.config_list(arch, "ddtb", 4, percentile=97, calibration="mse")
    assert not [setting for setting in settings(ends, INPUT) if {"percentile", "calibration"} & set(setting)]
    assert {setting["percentile"] for setting in settings(ends, WEIGHT)} == {97.0}
    default = srq_nni.config_list(arch, "ddtb", 4)
    assert not [s for target in (INPUT, WEIGHT) for s in settings(default, target) if "percentile" in s]


@pytest.mark.parametrize(("method", "calibration"), [("pams", "max"), ("ddtb", "official")])
def test_calibration_goes_to_activations_only(method: str, calibration: str) -> None:
    entries = srq_nni.config_list("EDSR", method, 4, calibration=calibration)
    assert {setting["calibration"] for setting in settings(entries, INPUT)} == {calibration}
    assert not [setting for setting in settings(entries, WEIGHT) if "calibration" in setting]
    assert "calibration" not in settings(srq_nni.config_list("EDSR", method, 4), INPUT)[0]


def test_pams_has_no_percentile() -> None:
    assert all(set(setting) == {"quant_dtype"} for setting in settings(srq_nni.config_list("RDN", "pams", 4), INPUT))


def test_paper_is_the_default_wiring() -> None:
    assert srq_nni.config_list("RDN", "pams", 4) == srq_nni.config_list("RDN", "pams", 4, "paper")


@pytest.mark.parametrize("arch", PRESETS)
def test_every_preset_knows_all_wirings(arch: str) -> None:
    assert tuple(find_preset(arch).wirings) == WIRINGS


SKIPS = {  # of two blocks: quantizers at the bits of skips, and those that a convolution has of its own behind one
    "EDSR": (["body.0", "body.0.branch", "body.1", "body.1.branch"], ["body.0.conv1", "body.1.conv1"]),
    "MSRResNet": (["body.0", "body.0.branch", "body.1", "body.1.branch"], ["body.0.conv1", "body.1.conv1"]),
    "RDN": (["RDBs.0", "RDBs.1"], ["RDBs.0.convs.0.conv.0", "RDBs.1.convs.0.conv.0"]),
    "SRResNet": (
        ["residual.0", "residual.0.in2", "residual.1", "residual.1.in2"],
        ["residual.0.conv1", "residual.1.conv1"],
    ),
}


@pytest.mark.parametrize("arch", PRESETS)
def test_skips_have_bits_of_their_own(arch: str) -> None:
    network = expose_sites(build_float({**SMALL[arch], "type": arch}))

    def activations(**options: Any) -> dict[str, int]:
        entries = srq_nni.config_list(network, "ddtb", 2, "deploy", **options)
        sites = quantization_sites(network, entries, "ddtb")
        assert {site.bits for site in sites if site.target == WEIGHT} == {2}
        return {site.module: site.bits for site in sites if site.target != WEIGHT}

    skips, behind = SKIPS[arch]
    plain, apart = activations(), activations(skip=8)
    assert sorted(name for name, bits in apart.items() if bits == 8) == sorted(skips)
    assert sorted(set(apart) - set(plain)) == behind
    assert set(plain.values()) == {2}


def test_skips_at_the_bits_of_activations_share_their_quantizer() -> None:
    for bits in (4, {"weight": 2, "activation": 4}):
        shared = srq_nni.config_list("EDSR", "pams", bits, "deploy")
        assert srq_nni.config_list("EDSR", "pams", bits, "deploy", skip=4) == shared
    assert srq_nni.config_list("EDSR", "pams", {"weight": 4, "activation": 2}, "deploy", skip=4) != shared


@pytest.mark.parametrize(
    ("arch", "options", "sentence"),
    [
        (
            "EDSR",
            {"skip": 8},
            "skip: 8 has no effect, since wiring paper of this network leaves its skips in floating point; delete it, "
            "or set wiring: deploy",
        ),
        (
            "SRResNet",
            {"skip": 8, "wiring": "official"},
            "skip: 8 has no effect, since wiring official of this network leaves its skips in floating point; delete "
            "it, or set wiring: deploy",
        ),
        (
            "EDSR",
            {"skip": 16, "wiring": "deploy"},
            "quantization: skip: 16 is not a bit width that can be quantized to; give an integer from 2 to 8",
        ),
    ],
)
def test_skips_are_checked(arch: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError) as error:
        srq_nni.config_list(arch, "pams", 4, **options)
    assert str(error.value) == sentence


@pytest.mark.parametrize("arch", PRESETS)
@pytest.mark.parametrize("scale", [2, 4])
def test_head_and_tail_are_all_that_the_body_leaves(arch: str, scale: int) -> None:
    """With both at 8 bits every convolution of the network is quantized, each once."""
    network = expose_sites(build_float({**SMALL[arch], "type": arch, "upscale": scale}))
    entries = srq_nni.config_list(network, "pams", 4, head=8, tail=8)
    sites = quantization_sites(network, entries, "pams")
    quantized = {site.module: site.bits for site in sites if site.target == WEIGHT}
    convolutions = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    assert list(quantized) == convolutions
    body = {site.module for site in quantization_sites(network, srq_nni.config_list(network, "pams", 4), "pams")}
    assert {name for name, bits in quantized.items() if bits == 4} == body
    inputs = {site.module: site.bits for site in sites if site.target == INPUT}
    assert inputs == quantized


def test_head_and_tail_have_widths_of_weights_and_of_activations() -> None:
    network = expose_sites(build_float({**SMALL["EDSR"], "type": "EDSR", "upscale": 2}))
    entries = srq_nni.config_list(network, "pams", 4, head=8, tail={"weight": 7, "activation": 8})
    sites = quantization_sites(network, entries, "pams")
    widths = {(site.module, site.target): site.bits for site in sites}
    assert widths["conv_first", WEIGHT] == widths["conv_first", INPUT] == 8
    assert (widths["conv_last", WEIGHT], widths["conv_last", INPUT]) == (7, 8)
    assert (widths["upsample.0", WEIGHT], widths["upsample.0", INPUT]) == (7, 8)
    assert {bits for (module, _), bits in widths.items() if module.startswith("body.")} == {4}


@pytest.mark.parametrize(
    ("tail", "sentence"),
    [
        (9, "tail: 9 is not a bit width that can be quantized to; give an integer from 2 to 8"),
        ({"weight": 7}, "tail: keys weight are not allowed; give both 'weight' and 'activation'"),
        (
            {"weight": 7, "activation": 9},
            "tail.activation: 9 is not a bit width that can be quantized to; give an integer from 2 to 8",
        ),
    ],
)
def test_head_and_tail_are_checked(tail: int | dict[str, int], sentence: str) -> None:
    with pytest.raises(OptionError) as error:
        srq_nni.config_list("EDSR", "pams", 4, tail=tail)
    assert str(error.value) == f"quantization: {sentence}"


def test_head_and_skip_have_no_effect_beside_a_config_list() -> None:
    for key, named in (("head", "convolutions"), ("skip", "modules")):
        with pytest.raises(OptionError) as error:
            options_from({"quantizer": "pams", "config_list": [{"op_names": ["body"]}], key: 8})
        assert str(error.value) == f"quantization: {key}: it has no effect beside config_list; name the {named} there"
