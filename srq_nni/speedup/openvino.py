"""OpenVINO on the CPU: runs every convolution whose input and weight are quantized in INT8.

Exactness, measured against ``integer_simulator`` (AVX2 without VNNI, EDSR, 2 to 4 bits): the output differs by less
than 0.001 grey levels, except where a value lies within float32 rounding of a tie between two codes.
Weight codes beyond +-63 (PAMS at 8 bits, DDTB at 7) need a CPU with VNNI or AMX: without them oneDNN halves the int8
weights of an int8 x int8 convolution and rounds, and a layer that holds such codes cannot be written in even codes, so
all its odd codes lose their last bit. That EDSR at 8 bits then gave 46 dB against the simulation, and ONNX Runtime,
whose float convolutions differ at ties alone, 84 dB. ``precision_report()`` says when this is so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from srq_nni.speedup.engine import EngineSpeedup, PrecisionReport
from srq_nni.speedup.lazy import import_or_explain

INTEGER_PRECISIONS = ("i8", "u8")
RUNTIME_KEYS = ("layerType", "runtimePrecision", "primitiveType")
LOSSY_NOTE = (
    "This CPU has no VNNI: oneDNN halves int8 weights and rounds them, so {count} convolution(s) with weight codes "
    "beyond +-63 differ from the integer simulation; 6 bits or fewer are exact here, 8 bits on CPUs with VNNI."
)


class ModelSpeedupOpenVINO(EngineSpeedup):
    """Build and run the INT8 model with OpenVINO; arguments and methods of ``EngineSpeedup``.

    What is not quantized is computed in float32, also on CPUs that would choose bfloat16 by themselves.
    """

    engine = "openvino"
    _compiled: Any = None

    def check_installed(self) -> None:
        import_or_explain("openvino", "openvino")

    def _build(self, content: bytes) -> bytes:
        core = import_or_explain("openvino", "openvino").Core()
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if self.threads is not None:
            options["INFERENCE_NUM_THREADS"] = self.threads
        self._compiled = core.compile_model(core.read_model(content), "CPU", options)
        return content

    def _run(self, array: np.ndarray) -> np.ndarray:
        return self._compiled(array)[0]

    def precision_report(self) -> PrecisionReport:
        """Return the precision of each convolution, read from OpenVINO's execution graph."""
        content = self._loaded()
        kernels = []
        for operation in self._compiled.get_runtime_model().get_ordered_ops():
            facts = {key: operation.get_rt_info()[key].astype(str) for key in RUNTIME_KEYS}
            if facts["layerType"] == "Convolution":
                kernels.append((operation.get_friendly_name(), facts["runtimePrecision"], facts["primitiveType"]))
        integer = sum(precision in INTEGER_PRECISIONS for _, precision, _ in kernels)
        lossy = count_lossy_weights(content) if integer and has_vnni() is False else 0
        notes = (LOSSY_NOTE.format(count=lossy),) if lossy else ()
        return PrecisionReport(self.engine, tuple(kernels), integer, notes)


def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Return whether an x86 CPU multiplies int8 without intermediate rounding; None where this cannot be found out."""
    try:
        words = set(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return None
    if not words & {"sse4_1", "avx2"}:
        return None
    return bool(words & {"avx512_vnni", "avx_vnni", "amx_int8"})


def count_lossy_weights(content: bytes) -> int:
    """Return how many int8 weights in an ONNX file hold odd codes, which a multiplication by 0.5 would round."""
    onnx = import_or_explain("onnx", "openvino")
    arrays = (
        onnx.numpy_helper.to_array(constant)
        for constant in onnx.load_model_from_string(content).graph.initializer
        if constant.data_type == onnx.TensorProto.INT8 and len(constant.dims) > 1
    )
    return sum(bool((array % 2).any()) for array in arrays)
