"""The order of operations of the released code: the same bits as its formulas, the same gradients as ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from basicsr.archs import edsr_arch
from torch import nn

from srq_nni.archs.quantized_arch import build_float, insert_quantizers
from srq_nni.compression.options import options_from
from srq_nni.compression.profiles import apply_profile
from srq_nni.quantization.activation import DDTBActivation, PAMSActivation
from srq_nni.quantization.fake_quantize import pams_quantize, quantize_weight_max_abs
from srq_nni.quantization.layers import attach_quantizer, quantized_convolutions
from srq_nni.quantization.weight import DDTBWeight, PAMSWeight
from srq_nni.speedup.integers import read_integers

BITS = range(2, 9)


def values(seed: int, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(4000, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", BITS)
def test_pams_has_the_bits_of_the_released_formula(bits: int) -> None:
    n, alpha = 2 ** (bits - 1) - 1, torch.tensor([2.7])
    x = torch.cat([values(bits), (torch.arange(-2 * n, 2 * n) + 0.5) * 2.7 / n])  # and all ties
    formula = torch.round(torch.max(torch.min(x, alpha), -alpha) * n / alpha) * alpha / n
    assert torch.equal(pams_quantize(x, alpha, bits, released_order=True), formula)
    other = pams_quantize(x, alpha, bits)
    assert ((other - formula).abs() <= 1.001 * alpha / n).all()


def test_the_order_decides_where_two_levels_are_equally_near() -> None:
    x, alpha = (torch.arange(-254, 254) + 0.5) * 2.7 / 127, torch.tensor([2.7])
    levels = [torch.round(pams_quantize(x, alpha, 8, released_order=order) * 127 / alpha) for order in (False, True)]
    assert not torch.equal(*levels)


@pytest.mark.parametrize("bits", BITS)
def test_gradients_are_those_of_the_other_order(bits: int) -> None:
    found = []
    for order in (False, True):
        x, alpha = values(bits).requires_grad_(), torch.tensor([2.7], requires_grad=True)
        pams_quantize(x, alpha, bits, released_order=order).sum().backward()
        found.append((x.grad, alpha.grad))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("bits", BITS)
def test_a_weight_of_pams_has_the_bits_of_the_released_formula(bits: int) -> None:
    weight, n = values(bits, 0.1).view(10, 16, 5, 5), 2 ** (bits - 1) - 1
    largest = weight.abs().max() + 1e-8
    formula = torch.round(weight * n / largest) * largest / n
    assert torch.equal(quantize_weight_max_abs(weight, bits, released_order=True), formula)
    assert torch.equal(PAMSWeight(bits, weight_range="official")(weight), formula)
    assert PAMSWeight(bits, weight_range="official").grid(weight) == PAMSWeight(bits, weight_range="max").grid(weight)


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("value", [1e38, 3.4e38, 1e-38, 0.0])
def test_a_weight_of_any_size_stays_finite(value: float, order: bool) -> None:
    weight = torch.tensor([value, -value / 3, 0.0])
    assert torch.isfinite(quantize_weight_max_abs(weight, 8, released_order=order)).all()


def test_who_computes_in_the_released_order() -> None:
    assert PAMSActivation(4, calibration="official").released_order
    assert not any(PAMSActivation(4, calibration=how).released_order for how in ("max", "mse"))
    assert DDTBActivation(4, limit_levels=False).released_order
    assert not DDTBActivation(4, calibration="official").released_order


@pytest.mark.parametrize("quantizer", ["pams", "ddtb"])
@pytest.mark.parametrize("profile", ["official", "default"])
def test_edsr_subtracts_its_mean_as_its_quantizers_compute(quantizer: str, profile: str) -> None:
    network = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "upscale": 2}
    plain = build_float(network)
    model = insert_quantizers(build_float(network), options_from(_block(quantizer, profile)))
    model.load_state_dict(plain.state_dict(), strict=False)
    assert (type(model) is edsr_arch.EDSR) == (profile == "default")
    assert type(model).__name__ == "EDSR" and isinstance(model, edsr_arch.EDSR)
    seen = list[torch.Tensor]()
    model.conv_first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    grey = torch.arange(256.0).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    with torch.no_grad():
        model(grey / 255)
    in_grey_levels = grey - 255 * torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)
    assert torch.equal(seen[0], in_grey_levels) == (profile == "official")
    assert torch.allclose(seen[0], in_grey_levels, atol=1e-4)


def _block(quantizer: str, profile: str) -> dict[str, Any]:
    return apply_profile({"quantizer": quantizer, "bits": 8, "wiring": "paper", "profile": profile}, "EDSR")


@pytest.mark.parametrize(
    ("maker", "half_steps"),
    [
        (lambda: PAMSWeight(8, weight_range="official"), 254),
        (lambda: DDTBWeight(8, percentile=100.0, limit_levels=False), 255),
    ],
    ids=["pams", "ddtb"],
)
def test_exported_codes_are_those_of_training(maker: Any, half_steps: int) -> None:
    """Also for a weight between two codes, which the division by the step would round to the other one."""
    weight = (2 * torch.arange(-120.0, 120.0) + 1).repeat(2) * (1.9 / half_steps)
    weight[0], weight[1] = 1.9, -1.9
    model = nn.Sequential(nn.Conv2d(8, 60, 1))
    model[0].weight.data = weight.view(60, 8, 1, 1)
    attach_quantizer(model, "0", "weight", maker())
    (_, layer), *_ = quantized_convolutions(model)
    step = layer.weight_quantizer.grid(layer.weight).scale
    trained = torch.round(layer.weight_quantizer(layer.weight) / step)
    assert not torch.equal(trained, torch.round(layer.weight / step))
    exported = read_integers(model.eval()).layers["0"]
    assert torch.equal(exported.weight_codes, trained.long())
