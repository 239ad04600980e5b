"""What each engine accepts, as data: where its integers start, how codes are limited, and what its pip extra is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from srq_nni.errors import ExportError, did_you_mean


@dataclass(frozen=True)
class EngineRules:
    """How a graph must be written so that the engine finds the integers in it and computes them exactly.

    Attributes:
        name: as users write it.
        zero_point: 0 writes activations as int8, 128 the same codes as uint8 shifted by 128.
        clip: ``integer`` limits the codes between QuantizeLinear and DequantizeLinear, ``float`` the values before.
        rounds_first: write Div and Round before a QuantizeLinear of scale 1. OpenVINO quantizes by adding 128 in
            float32 before it rounds, which moves values within 2e-5 of a tie to the other code; on values that are
            already integers it is exact. No time was lost by it.
        even_weights: write codes that fit twice in int8 doubled, with half the scale. On CPUs without VNNI oneDNN
            multiplies int8 weights by 0.5 and rounds them before an int8 x int8 convolution; even codes survive.
        adds_bias: write a float bias as an Add after the convolution. ONNX Runtime rounds the bias of a convolution
            that reads DequantizeLinear to the grid of the accumulator, which training does not.
        needs_output_quantizer: whether a convolution runs in integers only if its output is quantized too.
        note: what a reader of a report about this engine has to know.
    """

    name: str
    zero_point: Literal[0, 128] = 0
    clip: Literal["integer", "float"] = "integer"
    rounds_first: bool = False
    even_weights: bool = False
    adds_bias: bool = False
    needs_output_quantizer: bool = False
    note: str = ""


ENGINES = {
    "openvino": EngineRules("openvino", rounds_first=True, even_weights=True),
    "onnxruntime": EngineRules("onnxruntime", zero_point=128, adds_bias=True, needs_output_quantizer=True),
    "tensorrt": EngineRules(
        "tensorrt", clip="float", note="Written by NVIDIA's published rules; no TensorRT engine was built from it yet."
    ),
}


def get_rules(engine: str) -> EngineRules:
    """Return the rules of ``engine``.

    Raises:
        ExportError: for an unknown name, with the nearest right one.
    """
    if engine not in ENGINES:
        raise ExportError(
            f"engine: {engine!r} is not known; give one of {', '.join(ENGINES)}{did_you_mean(engine, ENGINES)}"
        )
    return ENGINES[engine]
