"""Quantizers inside BasicSR's networks: the float network stays what it was, every wiring builds and runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from basicsr.archs.arch_util import ResidualBlockNoBN
from basicsr.utils.registry import ARCH_REGISTRY

from srq_nni.archs.quantized_arch import ResidualBlockNoBN as SitedBlock
from srq_nni.archs.quantized_arch import build_float, insert_quantizers
from srq_nni.checkpoint import is_quantizer_key
from srq_nni.compression.blocks import expose_sites
from srq_nni.compression.options import options_from
from srq_nni.compression.presets import PRESETS, WIRINGS
from srq_nni.errors import OptionError
from srq_nni.models.feature import InputRecorder
from srq_nni.quantization.layers import activation_quantizers, quantized_convolutions
from srq_nni.quantization.targets import INPUT, OUTPUT, WEIGHT

NETWORKS: dict[str, dict[str, Any]] = {
    "EDSR": {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2},
    "MSRResNet": {"type": "MSRResNet", "num_feat": 8, "num_block": 2, "upscale": 2},
    "RDN": {"type": "RDN", "num_feat": 8, "num_block": 2, "num_layer": 3, "num_grow_ch": 4, "upscale": 2},
    "SRResNet": {"type": "SRResNet", "num_feat": 8, "num_block": 2, "upscale": 2},
}
# (activation quantizers, quantized convolutions) of the networks above, counted by hand from methods.md 4
COUNTS = {
    ("EDSR", "paper"): (4, 4),
    ("EDSR", "deploy"): (6, 4),
    ("EDSR", "tensorrt"): (4, 4),
    ("EDSR", "official"): (6, 4),
    ("MSRResNet", "paper"): (4, 4),
    ("MSRResNet", "deploy"): (6, 4),
    ("MSRResNet", "tensorrt"): (4, 4),
    ("MSRResNet", "official"): (6, 4),
    ("RDN", "paper"): (10, 10),
    ("RDN", "deploy"): (10, 10),
    ("RDN", "tensorrt"): (10, 10),
    ("RDN", "official"): (9, 10),
    ("SRResNet", "paper"): (4, 4),
    ("SRResNet", "deploy"): (6, 4),
    ("SRResNet", "tensorrt"): (4, 4),
    ("SRResNet", "official"): (4, 4),
}


def options(**changes: Any) -> Any:
    bits = {} if "config_list" in changes else {"bits": 4}
    return options_from({"quantizer": "pams", **bits, **changes})


@pytest.mark.parametrize("res_scale", [1, 0.1])
def test_sited_block_equals_the_float_block(res_scale: float) -> None:
    block = ResidualBlockNoBN(8, res_scale)
    sited = SitedBlock.from_block(block)
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(sited(x), block(x))
    assert sited.conv1.weight is block.conv1.weight
    assert list(sited.state_dict()) == list(block.state_dict())
    assert sited.res_scale == res_scale
    assert "shortcut" not in dict(block.named_children()), "the original block must stay as it was"


def test_sited_block_keeps_hooks_and_training_mode() -> None:
    block = ResidualBlockNoBN(4).eval()
    calls: list[int] = []
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    sited = SitedBlock.from_block(block)
    sited(torch.zeros(1, 4, 3, 3))
    assert calls == [1] and not sited.training


def test_sites_do_not_change_the_output_of_a_network() -> None:
    model = build_float(NETWORKS["EDSR"]).eval()
    x = torch.rand(1, 3, 8, 8)
    before = model(x)
    assert torch.equal(expose_sites(copy.deepcopy(model))(x), before)


@pytest.mark.parametrize("method", ["pams", "ddtb"])
@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("arch", PRESETS)
def test_every_preset_builds_runs_and_trains(arch: str, wiring: str, method: str) -> None:
    float_model = build_float(NETWORKS[arch])
    model = insert_quantizers(copy.deepcopy(float_model), options(quantizer=method, wiring=wiring))
    quantizers = list(activation_quantizers(model))
    assert (len(quantizers), len(list(quantized_convolutions(model)))) == COUNTS[arch, wiring]

    keys = list(model.state_dict())
    assert [key for key in keys if not is_quantizer_key(key)] == list(float_model.state_dict())
    model.load_state_dict(float_model.state_dict(), strict=False)

    x = torch.rand(2, 3, 8, 8)
    for _, quantizer in quantizers:
        quantizer.set_mode("calibrate")
    model(x)
    for _, quantizer in quantizers:
        quantizer.set_mode("quantize")
    output = model(x)
    assert output.shape == (2, 3, 16, 16)
    output.square().mean().backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not idle, "a parameter without a gradient breaks DistributedDataParallel"
    for name, quantizer in quantizers:
        assert quantizer.statistic.count == 1, f"{name} did not run, or ran twice"


@pytest.mark.parametrize("arch", PRESETS)
@pytest.mark.parametrize("wiring", WIRINGS)
def test_float_mode_is_the_float_network(arch: str, wiring: str) -> None:
    """With every activation quantizer in float mode and weights unquantized the output is unchanged, bit for bit."""
    float_model = build_float(NETWORKS[arch]).eval()
    model = insert_quantizers(copy.deepcopy(float_model), options(wiring=wiring))
    for _, quantizer in activation_quantizers(model):
        quantizer.set_mode("float")
    for _, convolution in quantized_convolutions(model):
        convolution.weight_quantizer = None
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(x), float_model(x))


@pytest.mark.parametrize("arch", PRESETS)
def test_skt_feature_is_the_input_of_the_upsampler(arch: str) -> None:
    model = build_float(NETWORKS[arch])
    recorder = InputRecorder(model, PRESETS[arch].feature)
    model(torch.rand(1, 3, 8, 8))
    assert recorder.take().shape == (1, 8, 8, 8)
    with pytest.raises(OptionError, match="did not run in the forward pass"):
        recorder.take()


def test_unknown_feature_is_named() -> None:
    with pytest.raises(OptionError) as caught:
        InputRecorder(build_float(NETWORKS["EDSR"]), "upsampel")
    assert str(caught.value) == (
        "feature: the network has no module 'upsampel'; name its upsampler; did you mean 'upsample'?"
    )


def test_deploy_feeds_convolution_and_skip_from_one_quantizer() -> None:
    """On a toy block: deploy quantizes the skip and the branch, paper leaves the skip in float."""
    model = build_float(NETWORKS["EDSR"]).eval()
    x = torch.randn(1, 8, 6, 6) * 3
    deploy = insert_quantizers(copy.deepcopy(model), options(wiring="deploy")).get_submodule("body.0")
    paper = insert_quantizers(copy.deepcopy(model), options(wiring="paper")).get_submodule("body.0")
    official = insert_quantizers(copy.deepcopy(model), options(wiring="official")).get_submodule("body.0")
    with torch.no_grad():
        quantized = deploy.input_quantizer(x)
        inner = torch.relu(deploy.conv1(quantized))
        assert torch.equal(deploy(x), quantized + deploy.branch(deploy.conv2(inner)))
        assert torch.equal(paper(x), x + paper.conv2(torch.relu(paper.conv1(x))))
        assert official.conv1.input_quantizer is None
        outer = torch.relu(official.conv1(x))
        assert torch.equal(official(x), official.shortcut(x) + official.branch(official.conv2(outer)))


def test_a_skip_of_more_bits_has_a_quantizer_of_its_own() -> None:
    """Q8 feeds the skip, Q4 behind it the convolution: conv1(Q4(Q8(x)))."""
    model = build_float(NETWORKS["EDSR"]).eval()
    block = insert_quantizers(model, options(wiring="deploy", skip=8)).get_submodule("body.0")
    x = torch.randn(1, 8, 6, 6) * 3
    with torch.no_grad():
        skip = block.input_quantizer(x)
        conv = block.conv1
        outer = torch.relu(
            torch.nn.functional.conv2d(
                conv.input_quantizer(skip), conv.weight_quantizer(conv.weight), conv.bias, padding=1
            )
        )
        assert torch.equal(block(x), skip + block.branch(block.conv2(outer)))
    assert [place.input_quantizer.bits for place in (block, block.conv1, block.branch)] == [8, 4, 8]


@pytest.mark.parametrize(
    ("network", "wiring", "sites"),
    [
        ("RDN", "official", {"RDBs.0": [INPUT], "RDBs.0.convs.1": [INPUT], "RDBs.0.LFF": [INPUT, WEIGHT]}),
        (
            "SRResNet",
            "deploy",
            {"residual.0": [INPUT], "residual.0.in2": [OUTPUT], "residual.0.conv2": [INPUT, WEIGHT]},
        ),
    ],
)
def test_sites_of_a_wiring(network: str, wiring: str, sites: dict[str, list[str]]) -> None:
    from srq_nni.compression.config import sites_config_list
    from srq_nni.compression.sites import quantization_sites

    model = expose_sites(build_float(NETWORKS[network]))
    found = quantization_sites(model, sites_config_list(model, options(wiring=wiring)), "pams")
    for module, targets in sites.items():
        assert [site.target for site in found if site.module == module] == targets


def test_quantized_network_is_registered() -> None:
    model = ARCH_REGISTRY.get("QuantizedNetwork")(NETWORKS["EDSR"], {"quantizer": "ddtb", "bits": 2})
    assert {quantizer.bits for _, quantizer in activation_quantizers(model)} == {2}


def test_mixed_bits_reach_the_quantizers() -> None:
    model = insert_quantizers(build_float(NETWORKS["EDSR"]), options(bits={"weight": 2, "activation": 8}))
    assert {quantizer.bits for _, quantizer in activation_quantizers(model)} == {8}
    assert {conv.weight_quantizer.bits for _, conv in quantized_convolutions(model)} == {2}


def test_an_architecture_without_preset_needs_a_config_list() -> None:
    network = {"type": "VGGStyleDiscriminator", "num_in_ch": 3, "num_feat": 4}
    with pytest.raises(OptionError) as caught:
        insert_quantizers(build_float(network), options())
    assert str(caught.value) == (
        "network 'VGGStyleDiscriminator' has no preset; allowed are EDSR, MSRResNet, RDN, SRResNet, "
        "or write a config_list that names its modules"
    )
    entries = [{"op_names": ["conv0_0"], "quant_dtype": "int8"}]
    model = insert_quantizers(build_float(network), options(config_list=entries))
    assert [name for name, _ in quantized_convolutions(model)] == ["conv0_0"]


def test_a_weight_that_is_no_convolution_is_refused() -> None:
    entries = [{"op_names": ["body.0.relu"], "target_names": ["weight"], "quant_dtype": "int8"}]
    with pytest.raises(OptionError) as caught:
        insert_quantizers(build_float(NETWORKS["EDSR"]), options(config_list=entries))
    assert str(caught.value) == (
        "config_list entry 0: target 'weight' of module 'body.0.relu' (ReLU) cannot be quantized; "
        "only those of nn.Conv2d and nn.Linear can"
    )


def test_op_types_find_the_block_by_its_own_name() -> None:
    entry = {"op_types": ["ResidualBlockNoBN"], "target_names": ["_input_0"], "quant_dtype": "int4"}
    model = insert_quantizers(build_float(NETWORKS["EDSR"]), options(config_list=[entry]))
    assert isinstance(model.body[0], SitedBlock)
    assert model.body[0].input_quantizer.bits == 4
