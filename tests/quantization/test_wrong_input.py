"""Wrong input is refused with one sentence: what was given, what is allowed, what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from srq_nni.errors import QuantizationError, SRQError
from srq_nni.functional import (
    attention_map,
    ddtb_quantize,
    pams_quantize,
    quantize_weight_max_abs,
    quantize_weight_percentile,
    skt_loss,
)
from srq_nni.quantization.activation import DDTBActivation, PAMSActivation
from srq_nni.quantization.grid import IntegerGrid, check_bits
from srq_nni.quantization.weight import DDTBWeight, PAMSWeight

FUNCTIONS: dict[str, Callable[[torch.Tensor, Any], torch.Tensor]] = {
    "pams_quantize": lambda x, bits: pams_quantize(x, 1.0, bits),
    "ddtb_quantize": lambda x, bits: ddtb_quantize(x, -1.0, 1.0, bits),
    "quantize_weight_max_abs": quantize_weight_max_abs,
    "quantize_weight_percentile": quantize_weight_percentile,
}
functions = pytest.mark.parametrize("quantize", FUNCTIONS.values(), ids=FUNCTIONS)
MODULES = [PAMSActivation, DDTBActivation, PAMSWeight, DDTBWeight]


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(QuantizationError) as error:
        call()
    assert isinstance(error.value, SRQError) and isinstance(error.value, ValueError)
    return str(error.value)


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 16, "4", True, 4.0, None])
def test_other_bit_widths_are_refused(bits: Any) -> None:
    sentence = f"bits: {bits!r} is not a bit width that can be quantized to; give an integer from 2 to 8"
    for quantize in FUNCTIONS.values():
        assert refusal(lambda: quantize(torch.zeros(3), bits)) == f"{sentence}, or 32 for floating point"  # noqa: B023
    for cls in MODULES:
        assert refusal(lambda: cls(bits)) == sentence  # noqa: B023


@pytest.mark.parametrize("cls", MODULES)
def test_a_module_cannot_have_32_bits(cls: type[nn.Module]) -> None:
    assert refusal(lambda: cls(32)) == (
        "bits: 32 is not a bit width that can be quantized to; give an integer from 2 to 8"
    )


def test_the_name_of_the_option_is_in_the_message() -> None:
    assert refusal(lambda: check_bits(1, name="bits.weight")).startswith("bits.weight: 1 is not")


@functions
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("bits", [4, 32])
def test_tensors_that_are_not_floating_are_refused(
    quantize: Callable[[torch.Tensor, Any], torch.Tensor], dtype: torch.dtype, bits: int
) -> None:
    assert refusal(lambda: quantize(torch.ones(3, dtype=dtype), bits)) == (
        f"a tensor of dtype {dtype} cannot be quantized; give a floating point tensor"
    )


@pytest.mark.parametrize("percentile", [50, 50.0, 101, 0.99, -1, float("nan"), True, "99"])
def test_other_percentiles_are_refused_at_once(percentile: Any) -> None:
    sentence = f"percentile: {percentile!r} is not allowed; give a number above 50, up to 100"
    assert refusal(lambda: quantize_weight_percentile(torch.randn(9), 4, percentile)) == sentence
    for cls in (DDTBActivation, DDTBWeight):
        assert refusal(lambda: cls(4, percentile=percentile)) == sentence  # noqa: B023


def test_percentiles_of_nothing_are_refused() -> None:
    assert refusal(lambda: quantize_weight_percentile(torch.zeros(0, 3, 3, 3), 4)) == (
        "percentile of an empty tensor is not defined; give at least one element"
    )


@pytest.mark.parametrize("shape", [(2, 3, 4), (5,), (), (1, 2, 3, 4, 5)])
def test_features_of_another_shape_have_no_attention_map(shape: tuple[int, ...]) -> None:
    sentence = f"a feature of shape {shape} has no attention map; give (N, C, H, W)"
    assert refusal(lambda: attention_map(torch.zeros(shape))) == sentence
    assert refusal(lambda: skt_loss(torch.zeros(1, 2, 3, 3), torch.zeros(shape))) == sentence


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (2, 3, 4, 5), (2, 3, 2, 8)])
def test_features_of_different_places_cannot_be_compared(shape: tuple[int, ...]) -> None:
    assert refusal(lambda: skt_loss(torch.zeros(2, 3, 4, 4), torch.zeros(shape))) == (
        f"student feature (2, 3, 4, 4) and teacher feature {shape} differ in batch or spatial size; "
        "take both at the upsampler's input of the same images"
    )


def test_features_may_differ_in_channels() -> None:
    assert skt_loss(torch.ones(2, 3, 4, 4), torch.ones(2, 8, 4, 4)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_as_large_as_grey_levels_have_an_attention_map(dtype: torch.dtype) -> None:
    feature = torch.randn(2, 3, 4, 4).mul(500).to(dtype)
    torch.testing.assert_close(attention_map(feature), attention_map(feature.float()))


def test_an_unknown_calibration_is_refused() -> None:
    assert refusal(lambda: PAMSActivation(4, calibration="maximum")) == (
        "calibration: 'maximum' is not known; give one of max, mae, mse, official; did you mean 'max'?"
    )
    assert refusal(lambda: DDTBActivation(4, calibration="max")) == (
        "calibration: 'max' is not known; give one of mae, mse, percentile, official; did you mean 'mae'?"
    )


def test_a_gate_that_is_missing_cannot_be_applied() -> None:
    quantizer = DDTBActivation(4)
    quantizer.apply_gate(False)
    assert refusal(lambda: quantizer.apply_gate(True)) == ("this quantizer has no gate to apply; call add_gate first")


def test_bounds_without_zero_have_no_integer_grid() -> None:
    quantizer = DDTBActivation(4)
    nn.init.constant_(quantizer.lower, 5.0)
    assert refusal(quantizer.grid) == (
        "codes from 15 to 30 leave out the zero point 0; give bounds with lower <= 0 <= upper"
    )


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_grid_needs_a_positive_finite_scale(scale: float) -> None:
    assert refusal(lambda: IntegerGrid(scale, -7, 7, 4)) == (
        f"scale: {scale!r} is not allowed; give a positive finite number"
    )


def test_a_grid_knows_its_levels() -> None:
    assert IntegerGrid(0.1, -52, 203, 8).largest_magnitude == 203
    assert IntegerGrid(0.1, -52, 203, 8).levels == 256
