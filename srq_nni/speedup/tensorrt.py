"""TensorRT 8.6, 10 and 11 on an NVIDIA GPU, from explicit Q/DQ files: no pycuda, no calibrators.

No engine was ever built or run with this code by its authors: its calls are checked against the packages' names, and
everything up to the ONNX file against the integer simulator. docs/tensorrt.md says what that covers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from srq_nni.errors import ExportError
from srq_nni.speedup.cuda import Cuda
from srq_nni.speedup.engine import EngineSpeedup, PrecisionReport
from srq_nni.speedup.inspector import precision_report
from srq_nni.speedup.lazy import import_or_explain
from srq_nni.speedup.lint_rules import CONVOLUTIONS
from srq_nni.speedup.onnx_file import is_onnx
from srq_nni.speedup.tensorrt_api import Shape, TensorRT

SMALLEST_SIDE = 8
logger = logging.getLogger(__name__)


class ModelSpeedupTensorRT(EngineSpeedup):
    """Build and run the INT8 model with TensorRT; takes the place of NNI's class of this name.

    An engine (a plan) runs with the TensorRT version and on the kind of GPU it was built with. What is not quantized is
    computed in float32.

    Args:
        model, config, onnx_path: as for ``EngineSpeedup``.
        input_shape: (N, C, H, W) of a typical input.
        shapes: smallest, typical and largest input, each (N, C, H, W); kernels are chosen for the typical one and
            memory is planned for the largest. By default from (1, C, 8, 8) to ``input_shape``, and an input beyond
            builds the engine anew for it as well, which takes its time and is logged.
        tf32: let the layers in floating point use TF32, faster and less exact.
        workspace: bytes of scratch memory while building, None for all there is.
        threads: without effect, there for code that serves all engines.
    """

    engine = "tensorrt"

    def __init__(
        self,
        model: nn.Module | str | os.PathLike[str],
        input_shape: Shape,
        config: Mapping[str, Any] | None = None,
        onnx_path: str | os.PathLike[str] = "default_model.onnx",
        *,
        shapes: tuple[Shape, Shape, Shape] | None = None,
        tf32: bool = False,
        workspace: int | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__(model, input_shape, config, onnx_path, threads=threads)  # type: ignore[arg-type]
        self.shapes = _checked(shapes or _default_shapes(self.input_shape), self.input_shape[1])
        self._may_grow = shapes is None
        self.tf32 = tf32
        if workspace is not None and workspace < 1:
            raise ExportError(f"workspace: {workspace} is not allowed; give bytes from 1, or None for all there is")
        self.workspace = workspace
        self._api: TensorRT | None = None
        self._session: _Session | None = None
        self._source: bytes | None = None  # the ONNX file of the engine, if it was built here

    def check_installed(self) -> None:
        """Raise ``ExportError`` without the package or without a GPU."""
        self._ready()

    def load_quantized_model(self, path: str | os.PathLike[str]) -> None:
        """Load an engine file that ``export_quantized_model`` or trtexec wrote, or build one from an ONNX file.

        Raises:
            ExportError: if the file cannot be read or is no engine for this version and GPU. An engine that was
                there before stays usable then.
        """
        api, cuda = self._ready()
        if is_onnx(path):
            self._build_from(path)
            return
        try:
            plan = Path(path).read_bytes()
        except OSError as error:
            raise ExportError(
                f"'{os.fspath(path)}' cannot be read: {error.strerror}; give a file of export_quantized_model"
            ) from error
        self._session = _Session(api, cuda, plan)
        self._content, self._source = plan, None

    def inference(self, test_data: torch.Tensor, reset_context: bool = False) -> tuple[torch.Tensor, float]:
        """Return (output, seconds) for images ``test_data`` (N, C, H, W), float, on any device.

        The output is float32 on the CPU (N, C, H, W), where NNI's was flat; the time is that of the GPU between two
        CUDA events, without copies. The first call of a size is slower than later ones.

        Args:
            test_data: images in the range of the training.
            reset_context: make a new execution context first.

        Raises:
            ExportError: before ``compress`` or ``load_quantized_model``, for a tensor of another shape or dtype, or for
                a size that a loaded engine, or one with ``shapes``, was not built for or has no memory for.
        """
        self._loaded()
        self.check_input(test_data)
        assert self._session is not None
        with self._running(test_data):
            if self._source is not None and self._may_grow and not self._session.takes(tuple(test_data.shape)):
                self.shapes = _widened(self.shapes, tuple(test_data.shape))
                logger.warning("building the engine anew for inputs of %s to %s", self.shapes[0], self.shapes[2])
                self._content = self._build(self._source)
            return self._session.run(test_data, reset_context)

    def precision_report(self) -> PrecisionReport:
        """Return the precision of each convolution, read from TensorRT's engine inspector."""
        self._loaded()
        assert self._session is not None
        convolutions = None
        if self._source is not None:
            nodes = import_or_explain("onnx", "tensorrt").load_model_from_string(self._source).graph.node
            convolutions = sum(node.op_type in CONVOLUTIONS for node in nodes)
        return precision_report(self._session.layer_information(), convolutions)

    def _ready(self) -> tuple[TensorRT, Cuda]:
        if self._api is None:
            self._api = TensorRT()
        return self._api, Cuda()

    def _build(self, content: bytes) -> bytes:
        api, cuda = self._ready()
        plan = api.build(content, self.shapes, tf32=self.tf32, workspace=self.workspace)
        self._session, self._source = _Session(api, cuda, plan), content
        return plan


class _Session:
    """An engine with its execution context."""

    def __init__(self, api: TensorRT, cuda: Cuda, plan: bytes) -> None:
        self._api, self._cuda = api, cuda
        self._engine = api.load(plan)
        self._input, self._output = api.tensor_names(self._engine)
        self._context: Any = None
        fixed = tuple(self._engine.get_tensor_shape(self._input))
        given = self._engine.get_tensor_profile_shape(self._input, 0) if min(fixed) < 0 else (fixed, fixed, fixed)
        self._smallest, self._typical, self._largest = (tuple(shape) for shape in given)

    def takes(self, shape: Shape) -> bool:
        """Whether the engine was built for inputs of ``shape``."""
        return _between(self._smallest, shape, self._largest)

    def run(self, x: torch.Tensor, fresh: bool) -> tuple[torch.Tensor, float]:
        """Return the output on the CPU and the seconds on the GPU."""
        shape = tuple(x.shape)
        if not self.takes(shape):
            raise ExportError(
                f"an input of shape {shape} is not allowed: this engine takes {self._smallest} to {self._largest}; "
                "build it with other shapes=(smallest, typical, largest), or cut the image into tiles"
            )
        context = self._shaped(shape, fresh)
        source = self._cuda.put(x)
        result = self._cuda.empty(tuple(context.get_tensor_shape(self._output)))
        context.set_tensor_address(self._input, source.data_ptr())
        context.set_tensor_address(self._output, result.data_ptr())
        done, seconds = self._cuda.timed(context.execute_async_v3)
        if not done:
            raise ExportError(f"tensorrt did not run an input of shape {shape}; see its messages in the log")
        return result.cpu(), seconds

    def layer_information(self) -> str:
        """Return the inspector's JSON; types of dynamic tensors are known only for a given shape."""
        return self._api.layer_information(self._engine, self._shaped(self._typical, False))

    def _shaped(self, shape: Shape, fresh: bool) -> Any:
        if self._context is None or fresh:
            context = self._engine.create_execution_context()
            if context is None:
                raise ExportError(
                    "the GPU has no memory left for this engine; free some, or build it for smaller shapes"
                )
            self._context = context
        self._context.set_input_shape(self._input, shape)
        return self._context


def _default_shapes(shape: Shape) -> tuple[Shape, Shape, Shape]:
    batch, channels, height, width = shape
    smallest = (1, channels, min(SMALLEST_SIDE, height), min(SMALLEST_SIDE, width))
    return smallest, (batch, channels, height, width), (batch, channels, height, width)


def _widened(shapes: tuple[Shape, Shape, Shape], shape: Shape) -> tuple[Shape, Shape, Shape]:
    """Return limits that take in ``shape``, which becomes the typical one."""
    smallest, _, largest = shapes
    return tuple(map(min, smallest, shape)), shape, tuple(map(max, largest, shape))


def _checked(shapes: tuple[Shape, Shape, Shape], channels: int) -> tuple[Shape, Shape, Shape]:
    wanted = f"give three shapes (N, {channels}, H, W), smallest, typical and largest, none below the one before"
    if len(shapes) != 3 or any(len(shape) != 4 or min(shape) < 1 or shape[1] != channels for shape in shapes):
        raise ExportError(f"shapes: {shapes} is not allowed; {wanted}")
    smallest, typical, largest = (tuple(shape) for shape in shapes)
    if not _between(smallest, typical, largest):
        raise ExportError(f"shapes: {shapes} is not allowed; {wanted}")
    return smallest, typical, largest


def _between(smallest: Shape, shape: Shape, largest: Shape) -> bool:
    return all(low <= side <= high for low, side, high in zip(smallest, shape, largest, strict=True))
