"""What each engine accepts, as data: where its integers start, how codes are limited, and what its pip extra is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from srq_nni.errors import ExportError, did_you_mean
from srq_nni.quantization.grid import IntegerGrid


@dataclass(frozen=True)
class Container:
    """The byte that holds codes in a file: stored = code + zero_point.

    Attributes:
        dtype: np.int8 or np.uint8.
        zero_point: stored value of code 0.
    """

    dtype: type[np.signedinteger | np.unsignedinteger]
    zero_point: int

    @property
    def minimum(self) -> int:
        """Smallest code it can hold."""
        return int(np.iinfo(self.dtype).min) - self.zero_point

    @property
    def maximum(self) -> int:
        """Largest code it can hold."""
        return int(np.iinfo(self.dtype).max) - self.zero_point

    def holds(self, low: int, high: int) -> bool:
        """Whether all codes from ``low`` to ``high`` fit."""
        return self.minimum <= low and high <= self.maximum


INT8, UINT8 = Container(np.int8, 0), Container(np.uint8, 0)


@dataclass(frozen=True)
class EngineRules:
    """How a graph must be written so that the engine finds the integers in it and computes them exactly.

    Attributes:
        name: as users write it.
        containers: of activation codes, best first; the first that holds the codes is taken, uint8 after a ReLU only.
        zero_points: whether codes that fit none of them may be written as uint8 with a zero point of their own. The
            smallest code is stored as 0 then, so codes of up to 7 bits stay within 127, see ``byte_products``.
        clip: ``integer`` limits the codes between QuantizeLinear and DequantizeLinear, ``float`` the values before.
        rounds_first: write Div and Round before a QuantizeLinear of scale 1. OpenVINO quantizes by adding 128 in
            float32 before it rounds, which moves values within 2e-5 of a tie to the other code; on values that are
            already integers it is exact. It is faster, too.
        even_weights: double weight codes that fit twice in int8, with half the scale, where the input is int8, and
            limit such an input by a Clip always, without which OpenVINO makes it uint8. Where codes do not fit twice,
            store the input as uint8 from 0 if nothing can saturate then; see ``byte_products``.
        loses_scales: guard integer layers without a bias that several nodes read; see ``shared_outputs``.
        guards_groups: guard grouped convolutions whose input has a zero point; see ``grouped_layers``.
        merges_quantizers: guard a quantizer that reads another one; see ``double_quantizers``.
        integer_bias: biases are int32 on the grid of the accumulator where nothing else is asked for. ONNX Runtime
            rounds the bias of a convolution that reads DequantizeLinear by itself, so the file does it first.
        needs_output_quantizer: a convolution runs in integers only if its output is quantized too, after a ReLU at
            most.
        hoists_quantizers: write a quantizer that follows a Concat on its inputs as well, where it ends a convolution.
        shuffles_codes: quantize before a DepthToSpace that a quantizer follows, and shuffle the codes.
        stores_integers: weights and biases are integers in the file. TensorRT takes INT8 only from a QuantizeLinear, so
            its weights are stored as the float32 values that the codes mean, with a QuantizeLinear behind them, and
            its biases as float32.
        note: what a reader of a report about this engine has to know.
        without_vnni: the same for ``count`` layers that are exact only on CPUs with VNNI.
    """

    name: str
    containers: tuple[Container, ...] = (INT8,)
    zero_points: bool = False
    clip: Literal["integer", "float"] = "integer"
    rounds_first: bool = False
    even_weights: bool = False
    loses_scales: bool = False
    guards_groups: bool = False
    merges_quantizers: bool = False
    integer_bias: bool = False
    needs_output_quantizer: bool = False
    hoists_quantizers: bool = False
    shuffles_codes: bool = False
    stores_integers: bool = True
    note: str = ""
    without_vnni: str = ""

    def container(self, grid: IntegerGrid, nonnegative: bool, *, unsigned: bool = False) -> Container | None:
        """Return what holds the codes of ``grid``, or None if nothing does.

        Args:
            grid: of the quantizer.
            nonnegative: the tensor comes from a ReLU, so codes below 0 do not occur.
            unsigned: rather uint8 with a zero point than int8, if the engine takes it.
        """
        low = 0 if nonnegative else grid.minimum
        for container in self.containers:
            if unsigned and self.zero_points and container is INT8:
                continue
            if container.holds(low, grid.maximum) and (nonnegative or container is not UINT8):
                return container
        if self.zero_points and grid.maximum - low < 256:
            return Container(np.uint8, -low)
        return None


ENGINES = {
    "openvino": EngineRules(
        "openvino",
        (UINT8, INT8),
        zero_points=True,
        rounds_first=True,
        even_weights=True,
        loses_scales=True,
        guards_groups=True,
        shuffles_codes=True,
        without_vnni="{count} of them are exact only on CPUs with VNNI or AMX: older ones round or saturate products "
        "of wide codes. With {{weight: 7, activation: 8}} as their bits they are exact on all.",
    ),
    "onnxruntime": EngineRules(
        "onnxruntime",
        (UINT8,),
        zero_points=True,
        merges_quantizers=True,
        integer_bias=True,
        needs_output_quantizer=True,
        hoists_quantizers=True,
        shuffles_codes=True,
        without_vnni="{count} of them saturate on CPUs without VNNI, unless the session has "
        "session.x64quantprecision=1, as ModelSpeedupONNXRuntime sets it, which takes time. With "
        "{{weight: 7, activation: 8}} as their bits none does.",
    ),
    "tensorrt": EngineRules(
        "tensorrt",
        clip="float",
        stores_integers=False,
        note="Written by NVIDIA's published rules; no TensorRT engine was built from it yet.",
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
