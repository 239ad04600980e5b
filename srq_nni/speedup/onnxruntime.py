"""ONNX Runtime on the CPU.

It runs a convolution in integers (QLinearConv) only if the output of the convolution is quantized too, after a ReLU at
most: all of them in wiring ``deploy``, every first one of a block in ``paper``. The others multiply dequantized numbers
in float32, which is slower than the float network. ``precision_report()`` counts both.

QLinearConv takes integer biases only, so the file holds biases on the grid of the accumulator and its reference is
``integer_simulator(model, engine="onnxruntime")``. Convolutions with uint8 inputs beyond 127 (8 bits) and large weights
are exact on CPUs without VNNI only with the session option ``PRECISION``, which a session of your own needs, too; see
``byte_products``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from srq_nni.speedup.byte_products import has_vnni, inexact_without_vnni
from srq_nni.speedup.engine import EngineSpeedup, PrecisionReport
from srq_nni.speedup.engine_rules import get_rules
from srq_nni.speedup.lazy import import_or_explain
from srq_nni.speedup.lint_rules import QUANTIZED_NODES

FLOAT_NODES = ("Conv", "FusedConv")
# With AVX-VNNI it would still change the weights to uint8, for which ONNX Runtime 1.31 has no such kernels.
PRECISION = ("session.x64quantprecision", "1")
FLOAT_NOTE = (
    "ONNX Runtime runs a convolution in integers only if its output is quantized too; this file has float convolutions "
    "over dequantized integers. Use wiring 'deploy', or OpenVINO for INT8 speed."
)


class ModelSpeedupONNXRuntime(EngineSpeedup):
    """Build and run the model with ONNX Runtime; arguments and methods of ``EngineSpeedup``."""

    engine = "onnxruntime"
    _session: Any = None
    _needs_precision = False

    def check_installed(self) -> None:
        import_or_explain("onnxruntime", "onnxruntime")

    def _build(self, content: bytes) -> bytes:
        proto = import_or_explain("onnx", "onnxruntime").load_model_from_string(content)
        self._needs_precision = has_vnni() is not True and bool(inexact_without_vnni(proto, get_rules(self.engine)))
        self._session = self._open(content)
        return content

    def _open(self, content: bytes, optimized: Path | None = None) -> Any:
        runtime = import_or_explain("onnxruntime", "onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # errors are raised, too
        if self._needs_precision:
            options.add_session_config_entry(*PRECISION)
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def _run(self, array: np.ndarray) -> Sequence[np.ndarray]:
        found: list[np.ndarray] = self._session.run(None, {self._session.get_inputs()[0].name: array})
        return found

    def precision_report(self) -> PrecisionReport:
        """Return the node type of each convolution in the graph as ONNX Runtime optimized it."""
        onnx = import_or_explain("onnx", "onnxruntime")
        with tempfile.TemporaryDirectory() as folder:
            optimized = Path(folder) / "optimized.onnx"
            self._open(self._loaded(), optimized)
            nodes = onnx.load(optimized).graph.node
        kernels = tuple(
            (node.name, "int8" if node.op_type in QUANTIZED_NODES else "float32", node.op_type)
            for node in nodes
            if node.op_type in QUANTIZED_NODES + FLOAT_NODES
        )
        integer = sum(kernel in QUANTIZED_NODES for _, _, kernel in kernels)
        quantized = any(node.op_type == "DequantizeLinear" for node in nodes)
        return PrecisionReport(self.engine, kernels, integer, (FLOAT_NOTE,) if quantized and not integer else ())
