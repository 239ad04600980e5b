"""What all engines share: NNI's speedup contract around one ONNX file."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from srq_nni.errors import ExportError
from srq_nni.quantization.layers import activation_quantizers, calibrate, quantized_convolutions
from srq_nni.speedup.calibrator import calibration_batches
from srq_nni.speedup.contract import BaseModelSpeedup
from srq_nni.speedup.export import ExportReport, export_onnx, write_atomically
from srq_nni.speedup.onnx_file import is_onnx, read_onnx
from srq_nni.speedup.table import text_table

OUT_OF_MEMORY = ("alloc", "out of memory")  # std::bad_alloc, "Failed to allocate", "can't allocate memory"


@dataclass(frozen=True)
class PrecisionReport:
    """What an engine really ran, counted in its own optimized graph; ``str()`` is a table.

    Attributes:
        engine: name of the engine.
        kernels: (layer, precision, kernel) of every convolution the engine has.
        integer_convolutions: how many of them multiply integers.
        notes: one sentence for each thing that is not as a reader would expect.
        inexact: layers whose products this CPU may round or saturate, see ``byte_products``; with AVX-VNNI all of wide
            codes if any kernel does not use it, as kernels do not tell their layer.
    """

    engine: str
    kernels: tuple[tuple[str, str, str], ...]
    integer_convolutions: int
    notes: tuple[str, ...] = ()
    inexact: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            text_table(("convolution", "precision", "kernel"), self.kernels),
            f"{self.engine}: {self.integer_convolutions} of {len(self.kernels)} convolutions in integers",
            *self.notes,
        ]
        return "\n".join(lines)


class EngineSpeedup(BaseModelSpeedup):
    """Base of the engines: NNI's ``BaseModelSpeedup`` with the methods of NNI's ``ModelSpeedupTensorRT``.

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
        super().__init__(model, config)
        self.input_shape = tuple(input_shape)
        self.onnx_path = Path(onnx_path)
        self.threads = threads
        self.report: ExportReport | None = None
        self._content: bytes | None = None

    def compress(self) -> None:
        """Write the ONNX file (unless ``model`` is one) and build the engine from it.

        Raises:
            ExportError: as ``export_onnx``, or if the engine is not installed or refuses the file.
        """
        self.check_installed()
        if self._is_onnx():
            self._build_from(self.model)
        else:
            self._export(self._network())

    def compress_with_calibrator(self, calib: Any) -> None:
        """Set the bounds of the quantizers from images, in torch, and then ``compress``.

        Engines no longer calibrate by themselves (TensorRT 11 dropped it), and the bounds have to be those of the
        integer simulation. ``model`` stays as it is; bounds it was trained with are not used.

        Args:
            calib: NNI's ``Calibrator``, a DataLoader, or any iterable of float images (N, C, H, W) in the range of the
                training; see ``calibration_batches``.

        Raises:
            ExportError: if ``model`` is an ONNX file or has no quantizers, or ``calib`` gives no images.
        """
        self.check_installed()
        if self._is_onnx():
            raise ExportError(
                f"'{os.fspath(self.model)}' is an ONNX file, whose scales are constants; "
                "give the network or its checkpoint to calibrate, or call compress()"
            )
        network = self._network()
        if not isinstance(network, nn.Module):
            from srq_nni import checkpoint

            network = checkpoint.load(network)
        if not any(activation_quantizers(network)):
            raise ExportError(
                f"a {type(network).__name__} without quantizers has no bounds to calibrate; quantize it first, such as "
                "srq_nni.PAMSQuantizer(model, srq_nni.config_list(model, 'pams', 8)).quantized_network()"
            )
        network = copy.deepcopy(network).float().cpu()
        with torch.no_grad():
            calibrate(network, calibration_batches(calib))
        self._export(network)

    def _is_onnx(self) -> bool:
        return not isinstance(self.model, nn.Module) and is_onnx(self.model)

    def _network(self) -> nn.Module | str | os.PathLike[str]:
        """Return what to export: the model, with the quantizers of ``config`` if it has none of its own."""
        if self.config is None or not isinstance(self.model, nn.Module) or any(quantized_convolutions(self.model)):
            return self.model
        from srq_nni.compression.calibration_config import quantized_network

        return quantized_network(self.model, self.config)

    def _export(self, network: nn.Module | str | os.PathLike[str]) -> None:
        sample = torch.zeros(1, self.input_shape[1], 32, 32)
        self.report = export_onnx(network, self.onnx_path, self.engine, sample=sample)
        self._build_from(self.onnx_path)

    def load_quantized_model(self, path: str | os.PathLike[str]) -> None:
        """Build the engine from an ONNX file.

        Raises:
            ExportError: if the file cannot be read or reaches outside its folder, or the engine is not installed or
                refuses it. An engine that was built before stays usable then.
        """
        self.check_installed()
        self._build_from(path)

    def _build_from(self, path: str | os.PathLike[str]) -> None:
        content = read_onnx(path)
        try:
            self._content = self._build(content)
        except ExportError:
            raise
        except Exception as error:  # each engine raises classes of its own
            raise ExportError(
                f"{self.engine} refuses '{os.fspath(path)}': {_lines(error)[0]}; write it again with "
                f"export_onnx(..., engine='{self.engine}')"
            ) from error

    def export_quantized_model(self, path: str | os.PathLike[str]) -> None:
        """Write the file that ``load_quantized_model`` reads, whole or not at all."""
        write_atomically(Path(path), self._loaded())

    def inference(self, test_data: torch.Tensor, reset_context: bool = False) -> tuple[torch.Tensor, float]:
        """Return (output, seconds) for images ``test_data`` (N, C, H, W), float, in the range of the training.

        The output is float32 on the CPU and a copy of its own; the time is that of the engine call alone.
        ``reset_context`` starts with a fresh execution context where an engine has one (TensorRT).

        Raises:
            ExportError: before ``compress`` or ``load_quantized_model``, for a tensor of another shape or dtype, or if
                the engine does not run one of this size or has no memory for it.
        """
        with self._running(test_data):
            array = self._array(test_data)
            start = time.perf_counter()
            output = self._run(array)[0]
            seconds = time.perf_counter() - start
            return torch.from_numpy(np.array(output)), seconds

    def outputs(self, test_data: torch.Tensor) -> list[np.ndarray]:
        """Return every output of the file in its order; ``inference`` returns the first. Errors as there."""
        with self._running(test_data):
            return [np.array(output) for output in self._run(self._array(test_data))]

    @contextmanager
    def _running(self, test_data: torch.Tensor) -> Iterator[None]:
        """Raise what an engine says while it runs ``test_data`` as an ``ExportError``."""
        try:
            yield
        except ExportError:
            raise
        except Exception as error:  # each engine raises classes of its own
            last = _lines(error)[-1].rstrip(".")
            full = isinstance(error, MemoryError) or any(word in str(error).lower() for word in OUT_OF_MEMORY)
            wanted = "a smaller image, or a smaller tile of it" if full else "an image of a size that the network takes"
            raise ExportError(
                f"{self.engine} does not run an input of shape {tuple(test_data.shape)}: {last}; give {wanted}"
            ) from error

    def _array(self, test_data: torch.Tensor) -> np.ndarray:
        self._loaded()
        self.check_input(test_data)
        return np.ascontiguousarray(test_data.detach().cpu().float().numpy())

    def check_input(self, test_data: torch.Tensor) -> None:
        """Raise ``ExportError`` for a tensor that is no batch of float images with the right channels."""
        if test_data.dim() != 4 or test_data.shape[1] != self.input_shape[1] or not test_data.is_floating_point():
            raise ExportError(
                f"an input of shape {tuple(test_data.shape)} and dtype {test_data.dtype} is not allowed; "
                f"give a float tensor (N, {self.input_shape[1]}, H, W)"
            )

    def precision_report(self) -> PrecisionReport:
        """Return how many convolutions run in integers, counted in the graph the engine built."""
        raise NotImplementedError

    def check_installed(self) -> None:
        """Raise ``ExportError`` with the pip command if the engine is not installed."""
        raise NotImplementedError

    def _build(self, content: bytes) -> bytes:
        """Build the engine from an ONNX file and return what ``export_quantized_model`` writes."""
        raise NotImplementedError

    def _run(self, array: np.ndarray) -> Sequence[np.ndarray]:
        """Return every output of the file, in its order."""
        raise NotImplementedError

    def _loaded(self) -> bytes:
        if self._content is None:
            raise ExportError("there is no engine yet; call compress() or load_quantized_model(path) first")
        return self._content


def _lines(error: Exception) -> list[str]:
    """Return what an error says in lines, or its class if that is nothing."""
    return str(error).strip().splitlines() or [type(error).__name__]
