"""What TensorRT's engine inspector says of convolutions, in the words of 8.6, 10 and 11."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from srq_nni.speedup.engine import PrecisionReport

NAMES_ONLY = (
    "This engine was built without detailed profiling, so it names layers only; build it with compress(), or with "
    "trtexec --profilingVerbosity=detailed."
)
HIDDEN = (
    "{found} of the {all} convolutions of the ONNX file are layers of their own in this engine; TensorRT merged the "
    "others into layers that its inspector does not call convolutions."
)
# Words of "Format/Datatype", such as "Thirty-two wide channel vectorized row major Int8 format", and of newer fields.
PRECISIONS = {
    "int8": "int8",
    "half": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "float": "float32",
    "fp32": "float32",
}


def precision_report(text: str, convolutions: int | None) -> PrecisionReport:
    """Return the precision of each convolution.

    Args:
        text: JSON of ``IEngineInspector.get_engine_information``.
        convolutions: how many the ONNX file has, None if it is not known.
    """
    layers = json.loads(text).get("Layers", [])
    if any(isinstance(layer, str) for layer in layers):
        return PrecisionReport("tensorrt", (), 0, (NAMES_ONLY,))
    kernels = tuple(
        (str(layer.get("Name", "")), _precision(layer), str(layer.get("TacticName") or layer.get("LayerType", "")))
        for layer in layers
        if _is_convolution(layer)
    )
    integer = sum(precision == "int8" for _, precision, _ in kernels)
    hidden = convolutions is not None and len(kernels) < convolutions
    notes = (HIDDEN.format(found=len(kernels), all=convolutions),) if hidden else ()
    return PrecisionReport("tensorrt", kernels, integer, notes)


def _is_convolution(layer: Mapping[str, Any]) -> bool:
    kinds = (str(layer.get("ParameterType", "")).lower(), str(layer.get("LayerType", "")).lower())
    return any("conv" in kind for kind in kinds)  # CaskConvolution, CaskGemmConvolution, CaskConvActPool, ..


def _precision(layer: Mapping[str, Any]) -> str:
    """Return the type of the weights, which decides; that of the input where they are not listed."""
    weights = layer.get("Weights")
    if isinstance(weights, Mapping) and "Type" in weights:
        return _named(str(weights["Type"]))
    inputs = layer.get("Inputs") or [{}]
    said = [str(inputs[0][key]) for key in ("Format/Datatype", "DataType", "Datatype") if key in inputs[0]]
    return _named(" ".join(said))


def _named(words: str) -> str:
    found = [PRECISIONS[word] for word in words.lower().replace(".", " ").split() if word in PRECISIONS]
    return found[0] if found else words or "unknown"
