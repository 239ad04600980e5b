"""Where gates start: bounds stay almost what they are, or move by what random weights say, as in the released code."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from srq_nni.archs.quantized_arch import QuantizedNetwork
from srq_nni.compression.phases import ddtb_quantizers, enter_phase, observing, start_bounds_and_gates
from srq_nni.errors import QuantizationError
from srq_nni.quantization.activation import DDTBActivation
from srq_nni.quantization.gate import NEUTRAL, Gate, Start, bound_factors

EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 32, "num_block": 2, "upscale": 2}
ALL_GATED = {"quantizer": "ddtb", "bits": 8, "dynamic_ratio": 1.0}


def opened(start: str | None, images: torch.Tensor) -> QuantizedNetwork:
    """A network whose gates have just opened, in training as the released code has it."""
    torch.manual_seed(0)
    model = QuantizedNetwork(EDSR, ALL_GATED if start is None else {**ALL_GATED, "gate_start": start})
    with observing(model):
        model(images)
    assert start_bounds_and_gates(model, 1.0)
    enter_phase(model, "final")
    return model


def factors(model: QuantizedNetwork) -> torch.Tensor:
    """What the bounds of the last batch were multiplied by: (gates, N, 2)."""
    logits = [q.gate_logits for q in ddtb_quantizers(model).values()]
    return torch.stack([bound_factors(each) for each in logits if each is not None]).detach()


def test_bounds_stay_where_they_are_when_gates_open(photographs: torch.Tensor) -> None:
    moved = {}
    for start in ("neutral", "random"):
        model = opened(start, photographs / 255)
        model(photographs / 255)
        moved[start] = (factors(model) - 1).abs()
    assert moved["neutral"].shape == (4, len(photographs), 2)
    assert 0 < moved["neutral"].max() < 0.02
    assert moved["random"].max() > 0.2
    default, random = (opened(start, photographs / 255).state_dict() for start in (None, "random"))
    assert all(torch.equal(tensor, random[name]) for name, tensor in default.items())


def test_opening_costs_next_to_nothing(photographs: torch.Tensor) -> None:
    """Beside the bounds alone an image changes by less than 8 bits round it, from random weights by more."""
    changes = {}
    for start in ("neutral", "random"):
        model = opened(start, photographs / 255)
        with torch.no_grad():
            after = model(photographs / 255)
            enter_phase(model, "static")
            held = model(photographs / 255)
            enter_phase(model, "observe")
            rounding = (held - model(photographs / 255)).square().mean().sqrt()
        changes[start] = float((after - held).square().mean().sqrt() / rounding)
    assert changes["neutral"] < 1 < changes["random"]


@pytest.mark.parametrize("start", ["neutral", "random"])
def test_the_weights_differ_by_one_factor_alone(start: Start) -> None:
    """Both draw the same random numbers, so what comes after them in a run is the same."""
    torch.manual_seed(3)
    gate = Gate(5, start=start)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    plain = Gate(5)
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(gate.reduce.weight, plain.reduce.weight)
    assert torch.equal(gate.expand.weight, plain.expand.weight * (NEUTRAL if start == "neutral" else 1))


def test_a_neutral_gate_learns_what_a_random_one_does() -> None:
    """At rate 2e-3, of 2-bit runs, 300 steps bring the factors of bright and dark images to 1.2 and 0.8."""
    torch.manual_seed(0)
    images = torch.rand(8, 16, 6, 6) + torch.arange(8.0).view(-1, 1, 1, 1)
    wanted = torch.where(torch.arange(8) > 3, 1.2, 0.8)[:, None].expand(8, 2)
    gate = Gate(16, start="neutral").train()
    before = copy.deepcopy(gate.state_dict())
    optimizer = torch.optim.Adam(gate.parameters(), lr=2e-3)
    for _ in range(300):
        optimizer.zero_grad()
        loss = F.mse_loss(bound_factors(gate(images)), wanted)
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gate.parameters())
        optimizer.step()
    assert loss < 0.01 < 0.03 < F.mse_loss(torch.ones(8, 2), wanted)
    assert all(not torch.equal(before[name], p) for name, p in gate.named_parameters())


def test_a_gate_that_somebody_built_keeps_its_weights() -> None:
    gate = Gate(4)
    weight = gate.expand.weight.detach().clone()
    quantizer = DDTBActivation(4, gate_start="neutral")
    quantizer.add_gate(gate)
    assert torch.equal(gate.expand.weight, weight)


def test_an_unknown_start_is_one_sentence() -> None:
    with pytest.raises(QuantizationError) as caught:
        DDTBActivation(4, gate_start="neutrl")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "gate_start: 'neutrl' is not known; give one of neutral, random; did you mean 'neutral'?"
    )
