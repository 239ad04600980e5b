"""Quantized networks under names of their own: what the block holds and what loads."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from srq_nni.archs.aliases_arch import ALIASES, two_blocks
from srq_nni.archs.quantized_arch import QuantizedNetwork, build_float
from srq_nni.archs.self_calibration import BATCHES, STARTED
from srq_nni.compression.presets import WIRINGS
from srq_nni.errors import CheckpointError, OptionError
from srq_nni.quantization.gate import Gate
from srq_nni.quantization.layers import activation_quantizers
from tests.archs.small_aliases import NAMES, block, bounds, photo, train

# --- names and blocks


def test_names_in_the_registry() -> None:
    assert list(ALIASES) == [name for name in ALIASES if name in ARCH_REGISTRY]
    assert set(NAMES) <= set(ALIASES)
    for name in NAMES:
        assert ARCH_REGISTRY.get(name).__name__ == name


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_that_of_the_two_blocks(name: str, wiring: str) -> None:
    network = block(name, wiring=wiring, bits={"weight": 3, "activation": 5})
    before = copy.deepcopy(network)
    torch.manual_seed(1)
    net = build_network(network).eval()
    torch.manual_seed(1)
    base, quantization = two_blocks(network)
    reference = QuantizedNetwork(base, quantization).eval()
    assert network == before
    assert set(net.state_dict()) - {BATCHES, STARTED} == set(reference.state_dict())
    with torch.no_grad():
        assert torch.equal(net(photo()), reference(photo()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"bits": None},
            "network_g: key 'bits' is missing; DDTB_EDSR needs it, from 2 to 8, for example bits: 4",
        ),
        (
            {"bit": 4},
            "network_g: key 'bit' is not known to DDTB_EDSR; allowed are num_in_ch, num_out_ch, num_feat, num_block, "
            "upscale, res_scale, img_range, rgb_mean, bits, wiring, config_list, calibration, calibration_iters, "
            "percentile, limit_levels; did you mean 'bits'?",
        ),
        ({"bits": 9}, "network_g: bits: 9 is not a bit width that can be quantized to; give an integer from 2 to 8"),
        (
            {"wiring": "papers"},
            "network_g: wiring: 'papers' is not known; give one of paper, deploy, tensorrt, official; "
            "did you mean 'paper'?",
        ),
        ({"quantizer": "ddtb"}, "network_g: quantizer: DDTB_EDSR says it already; delete it"),
        (
            {"dynamic_ratio": 0.3},
            "network_g: dynamic_ratio: a stock model trains DDTB_EDSR without it; delete it, or set model_type: "
            "QuantSRModel, type: EDSR and give it in a quantization block",
        ),
        (
            {"num_blocks": 2},
            "did you mean 'num_block'?",
        ),
        (
            {"config_list": [{"op_names": ["body.0.conv1"], "quant_dtype": "int4"}], "bits": 4},
            "network_g: bits: it has no effect beside config_list; give quant_dtype there",
        ),
        ({"calibration_iters": 0}, "calibration_iters: 0 leaves ddtb without an observation; give at least 1"),
    ],
)
def test_wrong_blocks_end_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        build_network(block("DDTB_EDSR", **changes))
    assert str(caught.value).endswith(message)
    assert str(caught.value).startswith("network_g: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"percentile": 99.0}, "network_g: percentile: pams has no such setting; delete it"),
        (
            {"calibration_iters": 0},
            "network_g: calibration_iters: 0 leaves PAMS_EDSR without bounds; give at least 1",
        ),
        (
            {"feature": "upsample"},
            "network_g: feature: a stock model trains PAMS_EDSR without it; delete it, or set model_type: "
            "QuantSRModel, type: EDSR and give it in a quantization block",
        ),
    ],
)
def test_wrong_blocks_of_pams(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        build_network(block("PAMS_EDSR", **changes))
    assert str(caught.value) == message


def test_a_config_list_replaces_the_preset() -> None:
    net = build_network(block(config_list=[{"op_names": ["body.0.conv1"], "quant_dtype": "int4"}]))
    assert [name for name, _ in activation_quantizers(net)] == ["body.0.conv1.input_quantizer"]


# --- loading


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_float_state_loads_and_the_quantizers_keep_their_start(name: str, strict: bool) -> None:
    source = build_float(two_blocks(block(name))[0]).state_dict()
    net = build_network(block(name))
    start = bounds(net)
    given = dict(source)
    net.load_state_dict(given, strict=strict)
    assert given.keys() == source.keys()
    assert all(torch.equal(net.state_dict()[key], value) for key, value in source.items())
    assert torch.equal(bounds(net), start)


def test_a_float_state_leaves_calibrated_bounds_alone() -> None:
    net = build_network(block())
    train(net, 2)
    before = bounds(net)
    net.load_state_dict(build_float(two_blocks(block())[0]).state_dict())
    assert torch.equal(bounds(net), before)
    train(net, 2, first=2)
    assert net.calibration.seen == 3 and net.calibration.finished


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("steps", [0, 2, 5])
@pytest.mark.parametrize("name", ["PAMS_EDSR", "DDTB_SRResNet"])
def test_a_quantized_state_makes_the_same_network(name: str, steps: int, strict: bool) -> None:
    net = build_network(block(name))
    train(net, steps)
    other = build_network(block(name))
    other.load_state_dict(net.state_dict(), strict=strict)
    assert torch.equal(other.eval()(photo()), net.eval()(photo()))
    for network in (net, other):
        train(network, 3, first=steps)  # calibration goes on where it stopped, or not at all
    assert torch.equal(bounds(net), bounds(other))
    assert torch.equal(other.eval()(photo()), net.eval()(photo()))


def wrong(change: str, state: dict[str, Any]) -> dict[str, Any]:
    if change == "float":
        return {key: value for key, value in state.items() if "quantizer" not in key and key != "conv_last.bias"}
    if change == "half":
        return {key: value for key, value in state.items() if not key.startswith("body.1.conv2.input_quantizer")}
    if change == "none":
        return {f"net.{key}": value for key, value in state.items() if "quantizer" not in key}
    return build_network(block("PAMS_EDSR", bits=2) if change == "bits" else block("DDTB_EDSR")).state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("half", "it lacks body.1.conv2.input_quantizer.alpha, body.1.conv2.input_quantizer.bit_width"),
        ("bits", "body.0.conv1.input_quantizer was saved with 2 bits and the network has 4; make network_g: bits"),
        ("method", "it lacks body.0.conv1.input_quantizer.alpha, body.0.conv2.input_quantizer.alpha"),
        ("none", "it lacks conv_first.weight, conv_first.bias, body.0.conv1.weight and"),
        ("float", "it lacks conv_last.bias; give one of the same architecture, or the right param_key_g"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_states_that_do_not_fit_are_refused(change: str, message: str, strict: bool) -> None:
    net = build_network(block())
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CheckpointError) as caught:
        net.load_state_dict(wrong(change, before), strict=strict)
    assert str(caught.value).startswith("the checkpoint does not fit PAMS_EDSR: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_stored_gates_are_added_and_train() -> None:
    base, quantization = two_blocks(block("DDTB_EDSR"))
    gated = QuantizedNetwork(base, quantization)
    name, quantizer = next(iter(activation_quantizers(gated)))
    quantizer.add_gate(Gate(8))  # type: ignore[operator]
    quantizer.apply_gate(True)  # type: ignore[operator]

    net = build_network(block("DDTB_EDSR"))
    net.load_state_dict(gated.state_dict())
    assert torch.equal(net.eval()(photo()), gated.eval()(photo()))
    weight = net.get_parameter(f"{name}.gate.expand.weight")
    before = weight.detach().clone()
    train(net, 1)
    assert not torch.equal(weight, before)
    with pytest.raises(CheckpointError, match=r"it lacks body\.0\.conv1\.input_quantizer\.gate"):
        net.load_state_dict(build_network(block("DDTB_EDSR")).state_dict())


def test_a_refused_gated_state_adds_no_gates() -> None:
    gated = QuantizedNetwork(*two_blocks(block("DDTB_EDSR", bits=2)))
    next(iter(activation_quantizers(gated)))[1].add_gate(Gate(8))  # type: ignore[operator]
    net = build_network(block("DDTB_EDSR"))
    with pytest.raises(CheckpointError):
        net.load_state_dict(gated.state_dict())
    assert not [module for module in net.modules() if isinstance(module, Gate)]


def test_a_network_inside_another_loads_too() -> None:
    outer, other = (nn.Sequential(build_network(block())) for _ in range(2))
    train(outer, 2)
    other.load_state_dict(outer.state_dict())
    assert torch.equal(bounds(other), bounds(outer))
    other.load_state_dict({f"0.{key}": v for key, v in build_float(two_blocks(block())[0]).state_dict().items()})
