"""The numbers recorded from the released DDTB code: matched, or bettered on purpose.

``exact`` cases must match. For a ``quirk`` the default does the better thing, and where an option repeats the published
behaviour, that option must give the recorded numbers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from srq_nni.functional import ddtb_quantize, quantize_weight_max_abs, quantize_weight_percentile
from srq_nni.quantization.activation import DDTBActivation
from srq_nni.quantization.calibration import choose_dynamic_layers
from srq_nni.quantization.gate import Gate, bound_factors, gate_quantize
from srq_nni.quantization.weight import DDTBWeight
from tests.quantization.cases import CASES, Checks, assert_close, calibrating, recorded_intensity, tensor

CHECKS = Checks()
claims = CHECKS.claims


def gated(inputs: dict[str, Any], **options: Any) -> DDTBActivation:
    """Return an eval-mode DDTB quantizer whose gate has the weights of a case, or those of the recorded gate."""
    weights = {**CASES["ddtb_gate_betas_and_dynamic_quant_2bit"]["inputs"], **inputs}
    quantizer = DDTBActivation(weights["bits"]).eval()
    nn.init.constant_(quantizer.upper, weights["upper"])
    nn.init.constant_(quantizer.lower, weights["lower"])
    gate = Gate(len(weights["conv1_w"][0]), **options).eval()
    with torch.no_grad():
        gate.reduce.weight.copy_(tensor(weights["conv1_w"]))
        gate.expand.weight.copy_(tensor(0.0 if weights["conv2_w"] == "zeros" else weights["conv2_w"]))
    quantizer.add_gate(gate)
    return quantizer


@claims("ddtb_act_fwd_2bit", "ddtb_act_fwd_4bit", "ddtb_act_fwd_8bit")
def ddtb_forward(inputs: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    y = ddtb_quantize(tensor(inputs["x"]), inputs["lower"], inputs["upper"], inputs["bits"])
    assert_close(y, expected["y"], tolerance)
    assert len(y.unique()) == expected["n_levels_seen"]


@claims("ddtb_act_grads_2bit")
def ddtb_gradients(inputs: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    x, bits = tensor(inputs["x"]).requires_grad_(), inputs["bits"]
    lower, upper = (torch.full_like(x, inputs[key]).requires_grad_() for key in ("lower", "upper"))
    ddtb_quantize(x, lower, upper, bits).sum().backward()
    assert_close(lower.grad, expected["grad_lower_per_element"], tolerance)
    assert_close(upper.grad, expected["grad_upper_per_element"], tolerance)
    x.grad = None
    ddtb_quantize(x, inputs["lower"], inputs["upper"], bits).backward(tensor(inputs["grad_out"]))
    assert_close(x.grad, expected["grad_x"], tolerance)


@claims("ddtb_init_bounds_pm10_gives_17_levels")
def ddtb_initial_levels(inputs: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    x, bits = torch.linspace(-12, 12, 4801), inputs["bits"]
    published = DDTBActivation(bits, limit_levels=False).eval()(x).detach()
    assert len(published.unique()) == expected["n_levels"]
    assert_close(torch.stack(published.aminmax()), [expected["min"], expected["max"]], tolerance)
    assert len(DDTBActivation(bits).eval()(x).unique()) == 2**bits


@claims("ddtb_calibration_percentile_M99")
def ddtb_percentile_start(inputs: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    for calibration in ("percentile", "official"):
        quantizer = calibrating(DDTBActivation(inputs["bits"], calibration=calibration, percentile=inputs["M"]))
        quantizer(tensor(inputs["x"]))
        assert_close(quantizer.upper.detach(), [expected["upper"]], tolerance)
        assert_close(quantizer.lower.detach(), [expected["lower"]], tolerance)


@claims("ddtb_calibration_only_at_2bit")
def ddtb_start_by_bits(inputs: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    recorded = expected["bounds_after_first_batch"]
    for bits, bounds in recorded.items():
        for calibration, right in (("official", bounds), ("percentile", recorded["2"])):
            quantizer = calibrating(DDTBActivation(int(bits), calibration=calibration, percentile=inputs["M"]))
            quantizer(tensor(inputs["x"]))
            assert_close(torch.cat([quantizer.upper, quantizer.lower]).detach(), right, tolerance)


@claims("ddtb_equal_bounds_nan")
def ddtb_equal_bounds(inputs: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    y = ddtb_quantize(tensor(inputs["x"]), inputs["lower"], inputs["upper"], inputs["bits"])
    assert_close(y, torch.full_like(y, inputs["lower"]), 1e-5)


@claims("ddtb_gate_betas_and_dynamic_quant_2bit")
def ddtb_gated(inputs: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    quantizer = gated(inputs, statistics="official")
    quantizer.apply_gate(True)
    y = quantizer(tensor(inputs["x"]))
    beta = bound_factors(quantizer.gate_logits).detach()
    assert_close(beta[:, 0], expected["beta_upper"], tolerance)
    assert_close(beta[:, 1], expected["beta_lower"], tolerance)
    assert_close(y.detach(), expected["y"], tolerance)


@claims("ddtb_gate_zero_logits_is_static", "ddtb_gate_warmup_not_applied")
def ddtb_gate_without_effect(inputs: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    x = tensor(inputs["x"])
    for statistics in ("per_sample", "official"):
        quantizer = gated({key: value for key, value in inputs.items() if key == "conv2_w"}, statistics=statistics)
        quantizer.apply_gate("beta" in expected)
        static = ddtb_quantize(x, quantizer.lower, quantizer.upper, quantizer.bits)
        assert expected["equal_to_static"] and torch.equal(quantizer(x), static)
        assert quantizer.gate_logits is not None
        if "beta" in expected:
            assert_close(bound_factors(quantizer.gate_logits).flatten().detach(), expected["beta"], tolerance)


@claims("ddtb_gate_first_layer_gets_no_gradient")
def ddtb_gate_gradients(inputs: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    names = {"atten_c.1.weight": "gate.reduce.weight", "atten_c.2.weight": "gate.norm.weight"}
    names |= {"atten_c.2.bias": "gate.norm.bias", "atten_c.5.weight": "gate.expand.weight"}
    names |= {"alpha_upper": "upper", "alpha_lower": "lower"}
    for gradient in ("official", "straight_through"):
        quantizer = gated({}, gradient=gradient).train()
        quantizer.apply_gate(True)
        quantizer(tensor(CASES["ddtb_gate_warmup_not_applied"]["inputs"]["x"])).sum().backward()
        found = dict(quantizer.named_parameters())
        for name, is_none in expected["grad_is_none"].items():
            assert (found.pop(names[name]).grad is None) == (is_none and gradient == "official")
        assert not found


@claims("ddtb_gate_act_quant_2bit")
def ddtb_gate_input(inputs: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    x = tensor(inputs["x"]).requires_grad_()
    y = gate_quantize(x, statistics="official", gradient="official")
    assert_close(y, expected["y"], tolerance)
    assert y.requires_grad is expected["requires_grad"]
    assert len(gate_quantize(x.view(1, 4, 1, 1)).unique()) <= 4


@claims("ddtb_gate_act_quant_tie_5_levels")
def ddtb_gate_levels(inputs: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    x = torch.linspace(-1.5, 1.5, 301).view(1, -1, 1, 1)
    assert len(gate_quantize(x, statistics="official").unique()) == expected["n_levels"]
    assert len(gate_quantize(x).unique()) == 4


@claims("ddtb_gate_act_quant_constant_input_nan")
def ddtb_gate_constant(inputs: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    for statistics in ("per_sample", "official"):
        assert_close(gate_quantize(torch.ones(1, 3, 1, 1), statistics=statistics), torch.ones(1, 3, 1, 1), tolerance)


@claims("ddtb_gate_weight_2bit_is_ternary")
def ddtb_gate_weight(inputs: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    levels = quantize_weight_max_abs(tensor(inputs["w"]), 2).unique()
    assert [round(level, 2) for level in levels.tolist()] == expected["levels"]


@claims("ddtb_gate_is_batch_dependent")
def ddtb_gate_batch(inputs: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    x = tensor(inputs["x"])
    for statistics, independent in (("official", expected["same_result_batched_and_single"]), ("per_sample", True)):
        gate = gated({}, statistics=statistics).gate
        single = torch.cat([gate(image[None]) for image in x])
        assert torch.allclose(gate(x), single, rtol=0, atol=1e-6) is independent


@claims("ddtb_weight_asym99_2bit", "ddtb_weight_asym99_4bit", "ddtb_weight_asym_minmax_2bit")
def ddtb_weight(inputs: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    weight = tensor(inputs["w"]).requires_grad_()
    quantizer = DDTBWeight(inputs["bits"], percentile=100.0 if min(expected["grad_w"]) == 1 else 99.0)
    quantized = quantizer(weight)
    quantized.sum().backward()
    assert_close(quantized.detach(), expected["wq"], tolerance)
    assert_close(weight.grad, expected["grad_w"], tolerance)


@claims("ddtb_k32_is_identity")
def ddtb_32(inputs: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    x = tensor(inputs["x"])
    recorder = DDTBActivation(4)
    recorder.set_mode("observe")
    assert torch.equal(recorder(x), x) and recorder.intensity.count == 1
    assert torch.equal(ddtb_quantize(x, -1.0, 1.0, 32), x) is expected["act_identity"]
    assert torch.equal(quantize_weight_percentile(x, 32), x) is expected["weight_identity"]


@claims("ddtb_dynamic_intensity")
def ddtb_intensity(inputs: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    found = {name: recorded_intensity(*extremes) for name, extremes in inputs["per_batch_max_min"].items()}
    for name, intensity in found.items():
        assert_close(intensity, expected["intensity"][name], tolerance)
    assert choose_dynamic_layers(found, inputs["ratio"]) == expected["selected"]


@pytest.mark.parametrize("case_id", CHECKS)
def test_case(case_id: str) -> None:
    case = CASES[case_id]
    CHECKS[case_id](case["inputs"], case["expected"], case["rel_tol"])


def test_every_ddtb_case_but_the_structure_is_checked_here() -> None:
    assert set(CHECKS) == {name for name in CASES if name.startswith("ddtb_")} - {"ddtb_structure_counts"}
