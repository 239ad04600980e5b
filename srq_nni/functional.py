"""The mathematics of PAMS and DDTB as plain functions of tensors."""

from srq_nni.quantization.attention import attention_map, skt_loss
from srq_nni.quantization.fake_quantize import (
    ddtb_quantize,
    pams_quantize,
    quantize_weight_max_abs,
    quantize_weight_percentile,
)

__all__ = [
    "attention_map",
    "ddtb_quantize",
    "pams_quantize",
    "quantize_weight_max_abs",
    "quantize_weight_percentile",
    "skt_loss",
]
