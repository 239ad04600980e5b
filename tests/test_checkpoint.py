"""Checkpoints: strict loading of float and quantized weights, one sentence for each misfit."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import srq_nni
from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import QuantizedNetwork, build_float
from srq_nni.errors import CheckpointError
from srq_nni.quantization.layers import activation_quantizers
from tests.sr_data import NETWORK

PAMS = {"quantizer": "pams", "bits": 4}
NINE = "conv_first.weight, conv_first.bias, body.0.conv1.weight"


@pytest.fixture
def float_file(tmp_path: Path) -> Path:
    path = tmp_path / "EDSR.pth"
    torch.save({"params": build_float(NETWORK).state_dict()}, path)
    return path


def quantized(block: dict[str, Any] = PAMS) -> nn.Module:
    """Return a quantized network whose bounds are no longer at their start."""
    model = QuantizedNetwork(NETWORK, block)
    with torch.no_grad():
        for position, (_, quantizer) in enumerate(activation_quantizers(model)):
            for bound in quantizer.bounds():
                bound.mul_(position + 0.5)
    return model


def saved(path: Path, block: dict[str, Any] = PAMS) -> Path:
    content = {"params": quantized(block).state_dict(), "srq": checkpoint.metadata_of(NETWORK, block)}
    checkpoint.save(content, path)
    return path


def message(call: Callable[[], Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- float weights


def test_float_weights_load_and_the_quantizers_keep_their_start(float_file: Path) -> None:
    model = quantized()
    before = {key: value.clone() for key, value in model.state_dict().items() if "quantizer" in key}
    assert checkpoint.load_weights(model, float_file, quantization=PAMS) is False
    stored = torch.load(float_file, weights_only=True)["params"]
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in stored.items())
    assert all(torch.equal(state[key], value) for key, value in before.items())


def test_a_flat_file_and_a_module_prefix_load(tmp_path: Path) -> None:
    state = build_float(NETWORK).state_dict()
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "flat.pth")
    for param_key in ("params", "params_ema", None):
        model = build_float(NETWORK)
        checkpoint.load_weights(model, tmp_path / "flat.pth", param_key=param_key)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_params_ema_is_taken_where_it_is_and_falls_back(tmp_path: Path) -> None:
    first, second = build_float(NETWORK).state_dict(), build_float(NETWORK).state_dict()
    torch.save({"params": first, "params_ema": second}, tmp_path / "both.pth")
    torch.save({"params": first}, tmp_path / "one.pth")
    model = build_float(NETWORK)
    for file, param_key, expected in [
        ("both.pth", "params", first),
        ("both.pth", "params_ema", second),
        ("one.pth", "params_ema", first),
    ]:
        checkpoint.load_weights(model, tmp_path / file, param_key=param_key)
        assert torch.equal(model.state_dict()["conv_first.weight"], expected["conv_first.weight"])


def test_home_directory_is_understood(float_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(float_file.parent))
    assert "params" in checkpoint.read("~/EDSR.pth")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda s: s.pop("conv_last.bias"),
            "it lacks conv_last.bias; give a checkpoint of the architecture in network_g",
        ),
        (
            lambda s: s.update(extra=torch.zeros(1)),
            "it has extra besides; give a checkpoint of the architecture in network_g",
        ),
        (
            lambda s: [s.pop(key) for key in list(s)] + [s.update(head=torch.zeros(1))],
            f"it lacks {NINE} and 9 more and has head besides; give a checkpoint of the architecture in network_g",
        ),
        (
            lambda s: s.update({"conv_last.bias": torch.zeros(1)}),
            "conv_last.bias has shape (1,) and the network (3,); "
            "give a checkpoint with the num_feat, num_block and upscale of network_g",
        ),
        (
            lambda s: s.update({"conv_last.bias": "zeros"}),
            "conv_last.bias is a str and no tensor; give a state dict",
        ),
    ],
)
def test_a_misfit_is_one_sentence_and_changes_nothing(
    float_file: Path, change: Callable[[dict[str, Any]], Any], expected: str
) -> None:
    content = torch.load(float_file, weights_only=True)
    change(content["params"])
    torch.save(content, float_file)
    model = quantized()
    before = copy.deepcopy(model.state_dict())
    text = message(lambda: checkpoint.load_weights(model, float_file, quantization=PAMS))
    assert text == f"checkpoint '{float_file}' does not fit the network: {expected}"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_missing_file_names_the_nearest(float_file: Path) -> None:
    wrong = float_file.with_name("EDRS.pth")
    assert message(lambda: checkpoint.read(wrong)) == (
        f"checkpoint '{wrong}' does not exist; give the path of a .pth file; did you mean 'EDSR.pth'?"
    )
    nowhere = Path("no") / "such" / "folder.pth"
    assert message(lambda: checkpoint.read(nowhere)).endswith("does not exist; give the path of a .pth file")


def test_wrong_key_names_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "ema.pth"
    torch.save({"params_ema": build_float(NETWORK).state_dict()}, path)
    text = message(lambda: checkpoint.load_weights(build_float(NETWORK), path))
    assert text == f"checkpoint '{path}' has no 'params'; allowed are params_ema"
    torch.save({"params": [1, 2]}, path)
    text = message(lambda: checkpoint.load_weights(build_float(NETWORK), path))
    assert text == f"checkpoint '{path}': 'params' is a list; give a state dict there"
    torch.save([torch.zeros(1)], path)
    assert message(lambda: checkpoint.read(path)).endswith("holds a list; give a file with a state dict")


# --- quantized weights


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({"quantizer": "pams", "bits": 8}, "bits: 4 and the options say bits: 8"),
        (
            {"quantizer": "pams", "bits": {"weight": 4, "activation": 2}},
            "bits: 4 and the options say bits: {'weight': 4, 'activation': 2}",
        ),
        ({**PAMS, "wiring": "deploy"}, "wiring: paper and the options say wiring: deploy"),
        ({**PAMS, "quantizer": "ddtb"}, "quantizer: pams and the options say quantizer: ddtb"),
    ],
)
def test_another_quantization_is_refused(tmp_path: Path, block: dict[str, Any], expected: str) -> None:
    path = saved(tmp_path / "net.pth")
    text = message(lambda: checkpoint.load_weights(quantized(block), path, quantization=block))
    assert text == (
        f"checkpoint '{path}' was made with {expected}; make them equal, or start from the float checkpoint"
    )


def test_bits_of_skips_belong_to_the_checkpoint(tmp_path: Path) -> None:
    stored = {**PAMS, "wiring": "deploy"}
    wanted = {**stored, "skip": 8}
    path = saved(tmp_path / "net.pth", stored)
    text = message(lambda: checkpoint.load_weights(quantized(wanted), path, quantization=wanted))
    assert "made with skip: None and the options say skip: 8; make them equal" in text
    assert checkpoint.load_weights(quantized(wanted), saved(path, wanted), quantization=wanted)


def test_percentile_of_weights_belongs_to_the_checkpoint(tmp_path: Path) -> None:
    stored, wanted = ({"quantizer": "ddtb", "bits": 4, "percentile": value} for value in (95.0, 99.0))
    path = saved(tmp_path / "net.pth", stored)
    text = message(lambda: checkpoint.load_weights(quantized(wanted), path, quantization=wanted))
    assert "made with percentile: 95.0 and the options say percentile: 99.0" in text


def test_two_spellings_of_the_same_bits_and_other_training_options_fit(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pth")
    block = {"quantizer": "pams", "bits": {"weight": 4, "activation": 4}, "wiring": "paper", "calibration_iters": 7}
    assert checkpoint.load_weights(quantized(block), path, quantization=block) is True


def test_bits_are_compared_without_metadata_too(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({"params": quantized().state_dict()}, path)
    model = quantized({"quantizer": "pams", "bits": 2})
    before = copy.deepcopy(model.state_dict())
    text = message(lambda: checkpoint.load_weights(model, path))
    assert text == (
        f"checkpoint '{path}' does not fit the network: body.0.conv1.input_quantizer was saved with 4 bits "
        "and the network has 2; make the bits equal"
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_file_that_names_no_quantization_is_judged_by_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    trained = quantized()
    trained.get_parameter("body.0.conv1.input_quantizer.alpha").data.fill_(3.0)
    torch.save({"params": trained.state_dict()}, path)
    model = quantized()
    assert checkpoint.load_weights(model, path, quantization=PAMS) is True
    assert model.get_parameter("body.0.conv1.input_quantizer.alpha").item() == 3.0
    ddtb = {"quantizer": "ddtb", "bits": 4}
    text = message(lambda: checkpoint.load_weights(quantized(ddtb), path, quantization=ddtb))
    assert "does not fit the network: it lacks body.0.conv1.input_quantizer.upper" in text


def test_a_quantized_file_must_be_complete_and_is_no_teacher(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pth")
    text = message(lambda: checkpoint.load_weights(build_float(NETWORK), path))
    assert text == f"checkpoint '{path}' is quantized; give a float checkpoint here"
    content = checkpoint.read(path)
    del content["params"]["body.0.conv2.input_quantizer.alpha"]
    checkpoint.save(content, path)
    text = message(lambda: checkpoint.load_weights(quantized(), path, quantization=PAMS))
    assert "it lacks body.0.conv2.input_quantizer.alpha" in text


@pytest.mark.parametrize("block", [PAMS, {"quantizer": "ddtb", "bits": {"weight": 2, "activation": 3}}])
@pytest.mark.parametrize("wiring", ["paper", "deploy", "official"])
def test_load_rebuilds_the_network_bit_for_bit(tmp_path: Path, block: dict[str, Any], wiring: str) -> None:
    block = {**block, "wiring": wiring}
    model = quantized(block).eval()
    metadata = checkpoint.metadata_of(OrderedDict(NETWORK), block)
    checkpoint.save(
        {"params": quantized(block).state_dict(), "params_ema": model.state_dict(), "srq": metadata}, tmp_path / "n"
    )
    loaded = srq_nni.load(tmp_path / "n")
    x = torch.rand(2, 3, 9, 7)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert not loaded.training


def test_load_needs_to_know_the_network(float_file: Path) -> None:
    assert message(lambda: srq_nni.load(float_file)) == (
        f"checkpoint '{float_file}' does not say which network it is; give a quantized one that srq train wrote"
    )


def test_metadata_is_plain_and_survives_weights_only(tmp_path: Path) -> None:
    network = OrderedDict(NETWORK, rgb_mean=(0.4, 0.5, 0.6))
    block = OrderedDict(PAMS, config_list=[OrderedDict(op_names=("conv_first",))])
    metadata = checkpoint.metadata_of(network, block)
    assert metadata == {
        "format": 1,
        "network": {**NETWORK, "rgb_mean": [0.4, 0.5, 0.6]},
        "quantization": {
            **PAMS,
            "calibration_iters": 100,
            "config_list": [{"calibration": "mse", "weight_range": "learned", "op_names": ["conv_first"]}],
            "student": "float",
        },
    }
    assert type(metadata["network"]) is dict and type(metadata["quantization"]["config_list"][0]) is dict
    checkpoint.save({"params": {}, "srq": metadata}, tmp_path / "m.pth")
    assert checkpoint.read(tmp_path / "m.pth")["srq"] == metadata
