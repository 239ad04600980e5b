"""Checkpoints against the switches of the options: what changes the function is compared, what trains it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import srq_nni
from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import QuantizedNetwork
from srq_nni.compression.phases import observing
from tests.sr_data import NETWORK
from tests.test_checkpoint import message, quantized, saved

DDTB = {"quantizer": "ddtb", "bits": 4}


@pytest.mark.parametrize(
    ("stored", "wanted", "expected"),
    [
        ({}, {"limit_levels": False}, "limit_levels: True and the options say limit_levels: False"),
        (
            {"gate_statistics": "official"},
            {},
            "gate_statistics: official and the options say gate_statistics: per_sample",
        ),
        ({}, {"profile": "official"}, "wiring: paper and the options say wiring: official"),
        (
            {"profile": "official"},
            {"profile": "official", "limit_levels": True},
            "limit_levels: False and the options say limit_levels: True",
        ),
    ],
)
def test_switches_that_change_the_function_are_compared(
    tmp_path: Path, stored: dict[str, Any], wanted: dict[str, Any], expected: str
) -> None:
    path = saved(tmp_path / "net.pth", {**DDTB, **stored})
    block = {**DDTB, **wanted}
    text = message(lambda: checkpoint.load_weights(quantized(block), path, quantization=block))
    assert f"'{path}' was made with {expected}; make them equal" in text


@pytest.mark.parametrize(
    "wanted",
    [
        {"calibration": "official"},
        {"gate_gradient": "official"},
        {"static_iters": 3, "dynamic_ratio": 0.9, "gate_loss_weight": 1.0, "observed_weights": "quantized"},
        {"profile": "default"},
        {"wiring": "paper", "limit_levels": True},
    ],
)
def test_switches_of_training_alone_may_change(tmp_path: Path, wanted: dict[str, Any]) -> None:
    path = saved(tmp_path / "net.pth", DDTB)
    assert checkpoint.load_weights(quantized({**DDTB, **wanted}), path, quantization={**DDTB, **wanted})


def test_config_lists_are_compared_with_their_settings(tmp_path: Path) -> None:
    entry = {"op_names": ["body.0.conv1"], "quant_dtype": "int4"}
    path = saved(tmp_path / "net.pth", {"quantizer": "ddtb", "config_list": [entry]})
    for more, fits in [({}, True), ({"calibration": "official"}, True), ({"limit_levels": False}, False)]:
        block = {"quantizer": "ddtb", "config_list": [{**entry, **more}]}
        if fits:
            assert checkpoint.load_weights(quantized(block), path, quantization=block)
        else:
            text = message(lambda b=block: checkpoint.load_weights(quantized(b), path, quantization=b))
            assert "was made with config_list: [" in text


def test_a_file_from_the_middle_of_the_observation_is_not_used(tmp_path: Path) -> None:
    model = QuantizedNetwork(NETWORK, DDTB)
    with observing(model):
        model(torch.rand(2, 3, 9, 9))
    for name, metadata in [
        ("old.pth", checkpoint.metadata_of(NETWORK, DDTB)),
        ("new.pth", checkpoint.metadata_of(NETWORK, DDTB, phase="observe")),
    ]:
        path = tmp_path / name
        checkpoint.save({"params": model.state_dict(), "srq": metadata}, path)
        assert message(lambda path=path: srq_nni.load(path)) == (
            f"checkpoint '{path}' was saved while DDTB still observed float activations, so its bounds are not set; "
            "give one that was saved after iteration 100"
        )
        assert checkpoint.load_weights(QuantizedNetwork(NETWORK, DDTB), path, quantization=DDTB)
    metadata = checkpoint.metadata_of(NETWORK, {**DDTB, "calibration": "official"}, phase="static")
    checkpoint.save({"params": model.state_dict(), "srq": metadata}, path)
    srq_nni.load(path)  # bounds of +-10 are what the released code has at 4 bits
