"""What the released code gets wrong: untrained gates, batch-dependent gates, too many levels, state that is lost."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from srq_nni.functional import ddtb_quantize, pams_quantize, quantize_weight_percentile
from srq_nni.quantization.activation import MODES, ActivationQuantizer, DDTBActivation, PAMSActivation
from srq_nni.quantization.gate import Gate, gate_quantize
from srq_nni.quantization.grid import FLOAT_BITS, step_count

BITS = st.integers(2, 8)
BOUND = st.floats(-100, 100, width=32)


def gated_ddtb(bits: int = 4) -> DDTBActivation:
    quantizer = DDTBActivation(bits)
    quantizer.add_gate(Gate(3))
    quantizer.apply_gate(True)
    return quantizer


MAKERS: dict[str, Callable[[int], ActivationQuantizer]] = {
    "pams": PAMSActivation,
    "pams mae": lambda bits: PAMSActivation(bits, calibration="mae"),
    "pams mse": lambda bits: PAMSActivation(bits, calibration="mse"),
    "pams official": lambda bits: PAMSActivation(bits, calibration="official"),
    "ddtb": DDTBActivation,
    "ddtb official": lambda bits: DDTBActivation(bits, calibration="official"),
    "ddtb gated": gated_ddtb,
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def trained(quantizer: ActivationQuantizer, x: torch.Tensor) -> ActivationQuantizer:
    """Observe one batch, calibrate on one, and take two optimizer steps."""
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.1)
    for mode in ("observe", "calibrate", "quantize", "quantize"):
        quantizer.train().set_mode(mode)
        y = quantizer(x)
        if mode != "observe":
            optimizer.zero_grad()
            (y - x).square().mean().backward()
            optimizer.step()
    return quantizer


# Every part of a gate learns.


def test_every_parameter_of_a_gated_quantizer_gets_a_gradient(photographs: torch.Tensor) -> None:
    quantizer = gated_ddtb().train()
    quantizer(photographs).sin().sum().backward()
    for name, parameter in quantizer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_gate_learns_from_the_regulariser_while_it_is_not_applied(photographs: torch.Tensor) -> None:
    quantizer = gated_ddtb().train()
    quantizer.apply_gate(False)
    quantizer(photographs)
    assert quantizer.gate_logits is not None
    quantizer.gate_logits.square().mean().backward()
    assert quantizer.gate is not None
    assert all(parameter.grad.abs().max() > 0 for parameter in quantizer.gate.parameters())


def test_no_gradient_reaches_the_input_through_the_gate(photographs: torch.Tensor) -> None:
    x = photographs.clone().requires_grad_()
    assert Gate(3).train()(x).grad_fn is not None
    assert not torch.autograd.grad(Gate(3).train()(x).sum(), x, allow_unused=True)[0]


def test_a_gated_quantizer_trains_on_single_images(photographs: torch.Tensor) -> None:
    quantizer = trained(gated_ddtb(), photographs[:1])
    assert all(torch.isfinite(parameter).all() for parameter in quantizer.parameters())


# An image's gate does not depend on its batch mates.


def test_gate_of_an_image_does_not_depend_on_its_batch(photographs: torch.Tensor) -> None:
    gate = Gate(3)
    gate.train()(photographs)
    gate.eval()
    batched = gate(photographs)
    for index, image in enumerate(photographs):
        torch.testing.assert_close(gate(image[None])[0], batched[index], rtol=0, atol=1e-6)
    mates = torch.stack([photographs[0], photographs[1] * 1e3, -photographs[2]])
    torch.testing.assert_close(gate(mates)[0], batched[0], rtol=0, atol=1e-6)


def test_gated_output_of_an_image_does_not_depend_on_its_batch(photographs: torch.Tensor) -> None:
    quantizer = trained(gated_ddtb(), photographs).eval()
    single = torch.cat([quantizer(image[None]) for image in photographs])
    torch.testing.assert_close(quantizer(photographs), single, rtol=1e-6, atol=1e-6)


@given(st.integers(1, 4), st.floats(-50, 50, width=32))
def test_gate_is_finite_for_constant_images(batch: int, value: float) -> None:
    gate = Gate(3).eval()
    assert torch.isfinite(gate(torch.full((batch, 3, 5, 4), value))).all()
    assert torch.isfinite(gate_quantize(torch.full((batch, 3, 1, 1), value))).all()


# k bits mean at most 2^k levels.


@given(BITS, BOUND, st.floats(0, 200, width=32))
def test_ddtb_has_at_most_two_to_the_k_levels(bits: int, lower: float, width: float) -> None:
    upper = lower + width
    x = torch.linspace(lower - 1, upper + 1, 4001)
    assert len(ddtb_quantize(x, lower, upper, bits).unique()) <= 2**bits


@given(BITS, st.floats(2**-10, 1e4, width=32))
def test_symmetric_ddtb_bounds_have_at_most_two_to_the_k_levels(bits: int, bound: float) -> None:
    x = torch.linspace(-2 * bound, 2 * bound, 4001)
    # The bounds lie half-way between two codes, so the last bit of the division decides about the outermost ones.
    assert 2**bits - 1 <= len(ddtb_quantize(x, -bound, bound, bits).unique()) <= 2**bits


@given(BITS, st.integers(-10, 10))
def test_only_the_published_option_gives_symmetric_bounds_one_level_more(bits: int, exponent: int) -> None:
    bound = step_count(bits) * 2.0**exponent
    x = torch.linspace(-2 * bound, 2 * bound, 4001)
    assert len(ddtb_quantize(x, -bound, bound, bits).unique()) == 2**bits
    assert len(ddtb_quantize(x, -bound, bound, bits, limit_levels=False).unique()) == 2**bits + 1


@given(BITS, st.floats(-10, 1e4, width=32))
def test_pams_has_one_level_less_than_two_to_the_k(bits: int, alpha: float) -> None:
    largest = max(alpha, 1e-5)
    x = torch.linspace(-2 * largest, 2 * largest, 4001)
    assert len(pams_quantize(x, alpha, bits).unique()) == 2**bits - 1


@given(BITS, st.integers(0, 1000), st.sampled_from([95.0, 99.0, 100.0]))
def test_ddtb_weights_have_at_most_two_to_the_k_levels(bits: int, seed: int, percentile: float) -> None:
    weight = torch.randn(500, generator=torch.Generator().manual_seed(seed))
    weight = torch.cat([weight, -weight])
    assert len(quantize_weight_percentile(weight, bits, percentile).unique()) <= 2**bits


# State survives.


def via_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@makers
@pytest.mark.parametrize("mode", MODES)
def test_state_survives_every_way_of_keeping_it(
    make: Callable[[int], ActivationQuantizer], mode: Any, photographs: torch.Tensor
) -> None:
    shapes = {key: value.shape for key, value in make(4).state_dict().items()}
    quantizer = trained(make(4), photographs)
    quantizer.set_mode(mode)
    quantizer(photographs)
    assert {key: value.shape for key, value in quantizer.state_dict().items()} == shapes
    assert all(buffer.grad_fn is None for buffer in quantizer.buffers())

    fresh = make(4)
    fresh.set_mode(mode)
    fresh.load_state_dict(via_file(quantizer.state_dict()))
    others = [fresh, copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))]
    for other in others:
        for name, value in quantizer.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name
    expected = quantizer.eval()(photographs)
    assert all(torch.equal(other.eval()(photographs), expected) for other in others)


def test_the_state_says_whether_the_gate_is_applied(photographs: torch.Tensor) -> None:
    for applied in (True, False):
        quantizer, fresh = gated_ddtb(), gated_ddtb()
        quantizer.apply_gate(applied)
        fresh.apply_gate(not applied)
        fresh.load_state_dict(via_file(quantizer.state_dict()))
        assert torch.equal(fresh.eval()(photographs), quantizer.eval()(photographs))


@pytest.mark.parametrize("cls", [PAMSActivation, DDTBActivation])
def test_a_state_of_other_bits_is_refused_and_changes_nothing(cls: type[ActivationQuantizer]) -> None:
    network, other = nn.Sequential(cls(4)), nn.Sequential(cls(8))
    nn.init.constant_(other[0].bounds()[0], -3.0)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(RuntimeError, match="0 was saved with 8 bits and the network has 4"):
        network.load_state_dict(other.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    with pytest.raises(RuntimeError, match=f"{cls.__name__} was saved with 8 bits and the network has 4"):
        network[0].load_state_dict(other[0].state_dict())


def test_32_bits_return_the_very_same_tensor() -> None:
    x = torch.randn(3)
    assert pams_quantize(x, 1.0, FLOAT_BITS) is x
    assert ddtb_quantize(x, -1.0, 1.0, FLOAT_BITS) is x


# One quantizer may serve several places of a network, in one step.


@makers
@pytest.mark.parametrize("mode", ["calibrate", "quantize"])
def test_a_quantizer_used_twice_in_one_step_trains(
    make: Callable[[int], ActivationQuantizer], mode: Any, photographs: torch.Tensor
) -> None:
    quantizer = make(4).train()
    quantizer.set_mode(mode)
    (quantizer(photographs) + quantizer(photographs / 2)).sum().backward()
    assert all(torch.isfinite(bound.grad).all() for bound in quantizer.bounds())
