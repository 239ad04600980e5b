"""What all engines share: NNI's speedup contract around one ONNX file."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from srq_nni.errors import ExportError
from srq_nni.quantization.layers import quantized_convolutions
from srq_nni.speedup.export import ExportReport, export_onnx, write_atomically
from srq_nni.speedup.onnx_file import read_onnx
from srq_nni.speedup.table import text_table


@dataclass(frozen=True)
class PrecisionReport:
    """What an engine really ran, counted in its own optimized graph; ``str()`` is a table.

    Attributes:
        engine: name of the engine.
        kernels: (layer, precision, kernel) of every convolution the engine has.
        integer_convolutions: how many of them multiply integers.
        notes: one sentence for each thing that is not as a reader would expect.
    """

    engine: str
    kernels: tuple[tuple[str, str, str], ...]
    integer_convolutions: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            text_table(("convolution", "precision", "kernel"), self.kernels),
            f"{self.engine}: {self.integer_convolutions} of {len(self.kernels)} convolutions in integers",
            *self.notes,
        ]
        return "\n".join(lines)


class EngineSpeedup:
    """Base of the engines, with the methods of NNI's ``ModelSpeedupTensorRT``.

    Args:
        model: quantized network, checkpoint path, or the path of an ONNX file (``.onnx``).
        input_shape: (N, C, H, W) of a typical input; N, H and W of later inputs are free.
        config: calibration_config of PAMSQuantizer or DDTBQuantizer, for the plain network that their ``unwrap_model``
            returned; without effect on a network that holds its quantizers.
        onnx_path: where ``compress`` writes the ONNX file.
        threads: of the engine; None leaves the choice to it.
    """

    engine: ClassVar[str]

    def __init__(
        self,
        model: nn.Module | str | os.PathLike[str],
        input_shape: tuple[int, int, int, int],
        config: Mapping[str, Any] | None = None,
        onnx_path: str | os.PathLike[str] = "default_model.onnx",
        *,
        threads: int | None = None,
    ) -> None:
        if len(input_shape) != 4 or min(input_shape) < 1:
            raise ExportError(
                f"input_shape: {tuple(input_shape)} is not allowed; give (batch, channels, height, width)"
            )
        if threads is not None and threads < 1:
            raise ExportError(
                f"threads: {threads} is not allowed; give a number from 1, or None for the engine's choice"
            )
        self.model = model
        self.input_shape = tuple(input_shape)
        self.config = config
        self.onnx_path = Path(onnx_path)
        self.threads = threads
        self.report: ExportReport | None = None
        self._content: bytes | None = None

    def _network(self) -> nn.Module | str | os.PathLike[str]:
        """Return what to export: the model, with the quantizers of ``config`` if it has none of its own."""
        if self.config is None or not isinstance(self.model, nn.Module) or any(quantized_convolutions(self.model)):
            return self.model
        from srq_nni.compression.calibration_config import quantized_network

        return quantized_network(self.model, self.config)

    def compress(self) -> None:
        """Write the ONNX file (unless ``model`` is one) and build the engine from it.

        Raises:
            ExportError: as ``export_onnx``, or if the engine is not installed or refuses the file.
        """
        if not isinstance(self.model, nn.Module) and Path(self.model).suffix == ".onnx":
            self.load_quantized_model(self.model)
            return
        self.check_installed()
        self.report = export_onnx(
            self._network(),
            self.onnx_path,
            self.engine,
            sample=torch.zeros(1, self.input_shape[1], 32, 32),
        )
        self.load_quantized_model(self.onnx_path)

    def load_quantized_model(self, path: str | os.PathLike[str]) -> None:
        """Build the engine from an ONNX file.

        Raises:
            ExportError: if the file cannot be read or reaches outside its folder, or the engine is not installed or
                refuses it. An engine that was built before stays usable then.
        """
        self.check_installed()
        content = read_onnx(path)
        try:
            self._build(content)
        except ExportError:
            raise
        except Exception as error:  # each engine raises classes of its own
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ExportError(
                f"{self.engine} refuses '{os.fspath(path)}': {first}; write it again with "
                f"export_onnx(..., engine='{self.engine}')"
            ) from error
        self._content = content

    def export_quantized_model(self, path: str | os.PathLike[str]) -> None:
        """Write the ONNX file the engine was built from, whole or not at all."""
        write_atomically(Path(path), self._loaded())

    def inference(self, test_data: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Return (output, seconds) for images ``test_data`` (N, C, H, W), float, in the range of the training.

        The output is float32 on the CPU and a copy of its own; the time is that of the engine call alone.

        Raises:
            ExportError: before ``compress`` or ``load_quantized_model``, or for a tensor of another shape or dtype.
        """
        self._loaded()
        if test_data.dim() != 4 or test_data.shape[1] != self.input_shape[1] or not test_data.is_floating_point():
            raise ExportError(
                f"an input of shape {tuple(test_data.shape)} and dtype {test_data.dtype} is not allowed; "
                f"give a float tensor (N, {self.input_shape[1]}, H, W)"
            )
        array = np.ascontiguousarray(test_data.detach().cpu().float().numpy())
        start = time.perf_counter()
        output = self._run(array)
        seconds = time.perf_counter() - start
        return torch.from_numpy(np.array(output)), seconds

    def precision_report(self) -> PrecisionReport:
        """Return how many convolutions run in integers, counted in the graph the engine built."""
        raise NotImplementedError

    def check_installed(self) -> None:
        """Raise ``ExportError`` with the pip command if the engine is not installed."""
        raise NotImplementedError

    def _build(self, content: bytes) -> None:
        raise NotImplementedError

    def _run(self, array: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _loaded(self) -> bytes:
        if self._content is None:
            raise ExportError("there is no engine yet; call compress() or load_quantized_model(path) first")
        return self._content
