"""OpenVINO on the CPU: runs every convolution whose input and weight are quantized in INT8.

Against ``integer_simulator`` the output differs by less than 0.001 grey levels, except where a value lies within
float32 rounding of a tie between two codes. At 8 bits layers with large weights may need a CPU with VNNI or AMX, see
``byte_products``; ``precision_report()`` says when this is so.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from srq_nni.errors import ExportError, did_you_mean
from srq_nni.speedup.bfloat16_tail import tail_in_bfloat16
from srq_nni.speedup.byte_products import has_avx_vnni_alone, has_vnni, inexact_without_vnni
from srq_nni.speedup.engine import EngineSpeedup, PrecisionReport
from srq_nni.speedup.engine_rules import get_rules
from srq_nni.speedup.lazy import import_or_explain

INTEGER_PRECISIONS = ("i8", "u8")
FLOAT32, BFLOAT16, BFLOAT16_TAIL = "float32", "bfloat16", "bfloat16-tail"
FLOAT_PRECISIONS = {FLOAT32: "f32", BFLOAT16: "bf16", BFLOAT16_TAIL: "f32"}
RUNTIME_KEYS = ("layerType", "runtimePrecision", "primitiveType")
LOSSY_NOTE = (
    "This CPU has no VNNI, without which {count} convolution(s) are not exact: oneDNN halves and rounds the weights of "
    "int8 inputs, and uint8 inputs beyond 127 may saturate. With {{weight: 7, activation: 8}} as their bits they are "
    "exact."
)
GEMM = "jit_gemm"  # kernels of some groups, as of 6 channels, which multiply bytes without AVX-VNNI
GEMM_NOTE = (
    "{count} convolution(s) run in kernels that do not use this CPU's AVX-VNNI, and may saturate uint8 inputs beyond "
    "127 there: some groups, as of 6 channels; 7 bits or fewer are exact."
)


@cache
def core() -> Any:
    """Return the ``openvino.Core`` of this process, the same for its whole life.

    Each CPU plugin gives the main thread a signal stack and takes it back when it is freed. Of two that are freed in
    the order in which they were made, the second puts the first one's stack back, which is gone: the next signal that
    Python hears, Ctrl-C or the end of a child, is then a SIGSEGV (OpenVINO 2026.4).

    Raises:
        ExportError: if the package is not installed.
    """
    return import_or_explain("openvino", "openvino").Core()


def has_bfloat16() -> bool:
    """Return whether OpenVINO computes in bfloat16 on this CPU."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class ModelSpeedupOpenVINO(EngineSpeedup):
    """Build and run the INT8 model with OpenVINO; arguments and methods of ``EngineSpeedup``, and one more.

    Args:
        float_precision: of what is not quantized. ``float32`` is exact, also on CPUs that would choose bfloat16 by
            themselves. Faster where the CPU has bfloat16, and float32 elsewhere (see ``floats_ran_in``):
            ``bfloat16-tail``, which leaves all codes exact, see ``bfloat16_tail``; ``bfloat16``, OpenVINO's own choice
            of layers, the head among them, which moves codes.
    """

    engine = "openvino"
    _compiled: Any = None

    def __init__(self, *arguments: Any, float_precision: str = "float32", **options: Any) -> None:
        super().__init__(*arguments, **options)
        if float_precision not in FLOAT_PRECISIONS:
            raise ExportError(
                f"float_precision: {float_precision!r} is not known; give one of {', '.join(FLOAT_PRECISIONS)}"
                f"{did_you_mean(float_precision, FLOAT_PRECISIONS)}"
            )
        self.float_precision = float_precision

    @property
    def floats_ran_in(self) -> str:
        """What OpenVINO made of ``float_precision`` on this CPU: the same, or ``float32``."""
        self._loaded()
        if self.float_precision == BFLOAT16_TAIL:  # the file says it, not the hint
            return BFLOAT16_TAIL if has_bfloat16() else FLOAT32
        hint = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        return next((name for name, word in FLOAT_PRECISIONS.items() if word == hint), str(hint))

    def check_installed(self) -> None:
        import_or_explain("openvino", "openvino")

    def _build(self, content: bytes) -> bytes:
        engine = core()
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        options["INFERENCE_PRECISION_HINT"] = FLOAT_PRECISIONS[self.float_precision]
        if self.threads is not None:
            options["INFERENCE_NUM_THREADS"] = self.threads
        model = content
        if self.float_precision == BFLOAT16_TAIL and has_bfloat16():
            onnx = import_or_explain("onnx", "openvino")
            model = tail_in_bfloat16(onnx.load_model_from_string(content)).SerializeToString()
        self._compiled = engine.compile_model(engine.read_model(model), "CPU", options)
        return content

    def _run(self, array: np.ndarray) -> Sequence[np.ndarray]:
        found: tuple[np.ndarray, ...] = self._compiled(array).to_tuple()
        return found

    def precision_report(self) -> PrecisionReport:
        """Return the precision of each convolution, read from OpenVINO's execution graph."""
        content = self._loaded()
        kernels = []
        for operation in self._compiled.get_runtime_model().get_ordered_ops():
            facts = {key: operation.get_rt_info()[key].astype(str) for key in RUNTIME_KEYS}
            if facts["layerType"] == "Convolution":
                kernels.append((operation.get_friendly_name(), facts["runtimePrecision"], facts["primitiveType"]))
        proto = import_or_explain("onnx", "openvino").load_model_from_string(content)
        kinds = [kernel for _, precision, kernel in kernels if precision in INTEGER_PRECISIONS]
        without = kinds if has_vnni() is False else [kind for kind in kinds if has_avx_vnni_alone() and GEMM in kind]
        lossy = inexact_without_vnni(proto, get_rules(self.engine)) if without else ()
        note = GEMM_NOTE.format(count=len(without)) if has_vnni() else LOSSY_NOTE.format(count=len(lossy))
        return PrecisionReport(self.engine, tuple(kernels), len(kinds), (note,) if lossy else (), lossy)
