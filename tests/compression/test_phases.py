"""Phases follow from the iteration number alone, and each does what methods.md 2.6 says."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import srq_nni  # noqa: F401 - fills the registries
from srq_nni.archs.quantized_arch import build_float, insert_quantizers
from srq_nni.checkpoint import load_weights, metadata_of, save
from srq_nni.compression.options import options_from
from srq_nni.compression.phases import (
    ddtb_quantizers,
    enter_phase,
    gate_loss,
    gate_parameters,
    observing,
    phase_at,
    start_bounds_and_gates,
)
from srq_nni.errors import CheckpointError
from srq_nni.quantization.layers import add_stored_gates, quantized_convolutions

NETWORK = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2}
DDTB = {"quantizer": "ddtb", "bits": 2, "calibration_iters": 3, "static_iters": 4}


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 2, 3, 12, 12, generator=generator)


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return insert_quantizers(build_float(NETWORK), options_from(DDTB))


def test_phase_by_iteration() -> None:
    ddtb = options_from(DDTB)
    assert [phase_at(i, ddtb) for i in (1, 3, 4, 7, 8, 999)] == [
        "observe",
        "observe",
        "static",
        "static",
        "final",
        "final",
    ]
    pams = options_from({"quantizer": "pams", "bits": 4, "calibration_iters": 3})
    assert [phase_at(i, pams) for i in (1, 3, 4)] == ["calibrate", "calibrate", "final"]


def test_observation_is_float_and_validation_stays_out_of_it(network: torch.nn.Module, images: torch.Tensor) -> None:
    torch.manual_seed(0)
    plain = build_float(NETWORK).eval()
    enter_phase(network, "observe")
    for batch in images:
        with observing(network):
            assert torch.equal(network(batch), plain(batch))  # weights are float, too
    with torch.no_grad():
        assert torch.equal(network.eval()(images[0] * 100), plain(images[0] * 100))
    for name, quantizer in ddtb_quantizers(network).items():
        assert quantizer.statistic.count == quantizer.intensity.count == len(images), name
    assert all(conv.weight.grad is None for _, conv in quantized_convolutions(network))


def test_gates_go_to_the_layers_with_the_greatest_intensity(network: torch.nn.Module, images: torch.Tensor) -> None:
    for batch in images:
        with observing(network):
            network(batch)
    intensity = {name: q.intensity.intensity for name, q in ddtb_quantizers(network).items()}
    chosen = start_bounds_and_gates(network, 0.5)
    assert chosen == sorted(intensity, key=intensity.__getitem__, reverse=True)[:2]
    assert {name for name, q in ddtb_quantizers(network).items() if q.gate is not None} == set(chosen)
    assert len(gate_parameters(network)) == 2 * 4  # two convolutions and the batch norm's pair


def test_a_tail_of_8_bits_gets_no_gate(images: torch.Tensor) -> None:
    network = insert_quantizers(build_float(NETWORK), options_from({**DDTB, "head": 8, "tail": 8}))
    for batch in images:
        with observing(network):
            network(batch)
    chosen = start_bounds_and_gates(network, 1.0)
    assert sorted(chosen) == [f"body.{block}.conv{conv}.input_quantizer" for block in (0, 1) for conv in (1, 2)]


def test_gates_are_held_then_applied(network: torch.nn.Module, images: torch.Tensor) -> None:
    for batch in images:
        with observing(network):
            network(batch)
    without = copy.deepcopy(network)
    start_bounds_and_gates(without, 0.0)
    start_bounds_and_gates(network, 0.5)
    for model in (network, without):
        enter_phase(model, "static")
        model.eval()
    with torch.no_grad():
        assert torch.equal(network(images[0]), without(images[0]))
    assert gate_loss(without) is None
    network.train()(images[0])
    loss = gate_loss(network)
    logits = [q.gate_logits for q in ddtb_quantizers(network).values() if q.gate is not None]
    assert loss is not None
    assert torch.allclose(loss, sum((z**2).mean() for z in logits) / 2)
    enter_phase(network.eval(), "final")
    with torch.no_grad():
        assert not torch.equal(network(images[0]), without(images[0]))


def test_gates_come_back_from_a_state_dict(network: torch.nn.Module, images: torch.Tensor) -> None:
    for batch in images:
        with observing(network):
            network(batch)
    start_bounds_and_gates(network, 0.5)
    enter_phase(network, "final")
    network(images[0])
    fresh = insert_quantizers(build_float(NETWORK), options_from(DDTB))
    add_stored_gates(fresh, network.state_dict())
    fresh.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh.eval()(images[0]), network.eval()(images[0]))


def test_a_file_that_does_not_fit_leaves_no_gates_behind(
    network: torch.nn.Module, images: torch.Tensor, tmp_path: Path
) -> None:
    for batch in images:
        with observing(network):
            network(batch)
    start_bounds_and_gates(network, 0.5)
    state = network.state_dict()
    del state["conv_first.bias"]
    save({"params": state, "srq": metadata_of(NETWORK, DDTB)}, tmp_path / "gated.pth")
    fresh = insert_quantizers(build_float(NETWORK), options_from(DDTB))
    with pytest.raises(CheckpointError, match=r"it lacks conv_first\.bias"):
        load_weights(fresh, tmp_path / "gated.pth", quantization=DDTB)
    assert gate_parameters(fresh) == []
