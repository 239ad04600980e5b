"""What is asked of the package ``tensorrt``: the calls that 8.6, 10 and 11 share, and flags by what a version has.

Explicit quantization only: no calibrators, dynamic ranges or layer precisions, which 11 dropped. 10 has to be asked for
a strongly typed network, 11 knows no other, and 8.6 needs the flag INT8 and a batch dimension that is asked for. The
values of flags differ between versions, so they are always read from the package.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from srq_nni.errors import ExportError
from srq_nni.speedup.lazy import import_or_explain

Shape = tuple[int, ...]

OLDEST = (8, 6)
LEVELS = {
    "INTERNAL_ERROR": logging.ERROR,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.DEBUG,  # TensorRT says much at this level
    "VERBOSE": logging.DEBUG,
}
KEPT_MESSAGES = 2
logger = logging.getLogger(__name__)


class TensorRT:
    """The package and its log.

    Raises:
        ExportError: if the package is missing or older than 8.6.
    """

    def __init__(self) -> None:
        self.trt = import_or_explain("tensorrt", "tensorrt")
        self.version = str(self.trt.__version__)
        found = re.match(r"(\d+)\.(\d+)", self.version)
        self._number = (int(found[1]), int(found[2])) if found else (0, 0)
        if self._number < OLDEST:
            raise ExportError(
                f"tensorrt {self.version} is too old; install 8.6, 10 or 11, such as with: pip install -U tensorrt"
            )
        self._errors: list[str] = []
        self._log = _make_log(self.trt, self._errors)

    def build(self, content: bytes, shapes: tuple[Shape, Shape, Shape], *, tf32: bool, workspace: int | None) -> bytes:
        """Return the serialised engine (a plan) of an ONNX file.

        Args:
            content: of the ONNX file.
            shapes: smallest, typical and largest input.
            tf32: let layers in floating point round their operands to 10 bits of mantissa.
            workspace: bytes of scratch memory, None for all there is.

        Raises:
            ExportError: with TensorRT's own words, if it cannot read the file or has no kernels for it.
        """
        trt = self.trt
        self._errors.clear()
        builder = trt.Builder(self._log)
        network = builder.create_network(self._network_flags())
        parser = trt.OnnxParser(network, self._log)
        if not parser.parse(content):
            said = "; ".join(parser.get_error(number).desc() for number in range(min(parser.num_errors, KEPT_MESSAGES)))
            raise ExportError(
                f"tensorrt {self.version} cannot read the ONNX file: {said or self._said()}; "
                "see srq_nni.speedup.lint_onnx(path, 'tensorrt') and write it with export_onnx(..., engine='tensorrt')"
            )
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector names layers only
        if not self._is_strongly_typed:
            config.set_flag(trt.BuilderFlag.INT8)
        if not tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        if workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
        profile = builder.create_optimization_profile()
        profile.set_shape(network.get_input(0).name, *shapes)
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise ExportError(
                f"tensorrt {self.version} cannot build an engine: {self._said()}; give smaller shapes, "
                "or see srq_nni.speedup.lint_onnx(path, 'tensorrt')"
            )
        return bytes(plan)

    def load(self, plan: bytes) -> Any:
        """Return the ``ICudaEngine`` of a plan.

        Raises:
            ExportError: if it is no plan, or one of another version or GPU.
        """
        self._errors.clear()
        self._runtime = self.trt.Runtime(self._log)  # has to live as long as its engines
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ExportError(
                f"tensorrt {self.version} cannot load this engine: {self._said()}; an engine runs with the version and "
                "the kind of GPU it was built on, so build it here from the ONNX file with compress()"
            )
        return engine

    def layer_information(self, engine: Any, context: Any) -> str:
        """Return what the engine inspector says of all layers, as JSON, for the input shape set in ``context``."""
        inspector = engine.create_engine_inspector()
        inspector.execution_context = context
        return str(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))

    def tensor_names(self, engine: Any) -> tuple[str, str]:
        """Return the names of the one input and the one output, both float32.

        Raises:
            ExportError: for an engine with others.
        """
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT]
        outputs = [name for name in names if engine.get_tensor_mode(name) == self.trt.TensorIOMode.OUTPUT]
        floats = all(engine.get_tensor_dtype(name) == self.trt.DataType.FLOAT for name in names)
        if (len(inputs), len(outputs)) != (1, 1) or not floats:
            types = "" if floats else ", not all of them float32,"
            raise ExportError(
                f"an engine with {len(inputs)} input(s) and {len(outputs)} output(s){types} is not allowed; "
                "give one of a super-resolution network, which takes one float32 image and gives one"
            )
        return inputs[0], outputs[0]

    @property
    def _is_strongly_typed(self) -> bool:
        return "STRONGLY_TYPED" in self.trt.NetworkDefinitionCreationFlag.__members__

    def _network_flags(self) -> int:
        flag = self.trt.NetworkDefinitionCreationFlag
        bits = 1 << int(flag.STRONGLY_TYPED) if self._is_strongly_typed else 0
        if self._number < (10, 0):
            bits |= 1 << int(flag.EXPLICIT_BATCH)
        return bits

    def _said(self) -> str:
        return "; ".join(self._errors[-KEPT_MESSAGES:]) or "it does not say why"


def _make_log(trt: Any, errors: list[str]) -> Any:
    """Return an ``ILogger`` that passes messages on to ``logging`` and keeps errors for the exceptions."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = LEVELS.get(str(severity.name), logging.DEBUG)
            if level == logging.ERROR:
                errors.append(message.strip())
            logger.log(level, "%s", message)

    return Log()
