"""A super-resolution network in an engine: what ``upscale`` has to know of an ONNX file, and the call."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from srq_nni.errors import ExportError
from srq_nni.speedup.engine_rules import get_rules
from srq_nni.speedup.engines import engine_of, engines_here, runs_here
from srq_nni.speedup.export import export_onnx
from srq_nni.speedup.image_metadata import FORMAT_KEY, RANGE_KEY, image_channels, read_metadata, value_range_of
from srq_nni.speedup.lazy import import_or_explain
from srq_nni.speedup.onnx_file import is_onnx, read_onnx
from srq_nni.speedup.receptive_field import receptive_field

logger = logging.getLogger(__name__)
LARGEST = 640  # pixels a side that TensorRT plans for; windows of the default size are smaller
PROBE = 32  # pixels a side of the image that finds the scale of a graph which does not state it


class SRNetwork:
    """A network that enlarges images of any size.

    Attributes:
        path: the file it came from.
        engine: that runs it.
        channels: 1 or 3.
        value_range: value of white in its input and output.
        scale: output pixels per input pixel.
        radius: how many input pixels an output pixel sees in each direction; None if the network cannot be tiled.
        untileable: why it cannot; empty if it can.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        engine: str | None = None,
        threads: int | None = None,
        value_range: float | None = None,
        float_precision: str | None = None,
    ) -> None:
        """Load a network.

        Args:
            model: ONNX file (``.onnx``), or a checkpoint, which is exported for the engine first.
            engine: ``openvino``, ``onnxruntime`` or ``tensorrt``; by default the one the file was written for.
            threads: of the engine; None leaves the choice to it.
            value_range: value of white in input and output, for files that do not state it.
            float_precision: of the layers that are not quantized, on OpenVINO, see ``ModelSpeedupOpenVINO``.

        Raises:
            ExportError: if the file cannot be read, is no network from images to images, or the engine does not run or
                has no ``float_precision``.
            CheckpointError: if ``model`` is a checkpoint that cannot be used.
        """
        if engine is not None:
            get_rules(engine)
        self.path = Path(model)
        with tempfile.TemporaryDirectory() as folder:
            file = self.path
            if not is_onnx(file):
                file = Path(folder) / "model.onnx"
                export_onnx(model, file, engine or _first_engine())
            proto = import_or_explain("onnx", "onnx").load_model_from_string(read_onnx(file))
            entries = read_metadata(proto)
            self.channels = image_channels(proto, self.path)
            self.value_range = self._range(entries, value_range)
            self.engine = engine or _engine_for(entries.get("engine") if FORMAT_KEY in entries else None)
            field = receptive_field(proto)
            self.radius, self.untileable = field.radius, field.reason
            shape = (1, self.channels, LARGEST, LARGEST)
            options = self._options(float_precision)
            self._speedup = engine_of(self.engine, file, shape, threads=threads, **options)
        self.scale = field.scale or self._measure_scale()
        self.warned: set[int] = set()  # overlaps that may leave seams, of which the user has heard

    def run(self, image: np.ndarray) -> np.ndarray:
        """Return the enlarged ``image`` (C, H, W), float32 from 0 to ``value_range``, in the same layout.

        Raises:
            ExportError: if the network gives another shape than its scale says, or NaN or infinity.
        """
        output = self._run(image)
        wanted = (self.channels, image.shape[1] * self.scale, image.shape[2] * self.scale)
        if output.shape != wanted:
            raise ExportError(
                f"'{self.path}' turned {image.shape[2]} x {image.shape[1]} pixels into an array of shape "
                f"{output.shape} where {wanted} was due; give a network that enlarges every image {self.scale} times"
            )
        if not np.isfinite(output).all():
            raise ExportError(f"'{self.path}' returned NaN or infinity; give a network whose weights are finite")
        return output

    def _options(self, float_precision: str | None) -> dict[str, str]:
        if float_precision is None:
            return {}
        if self.engine != "openvino":
            raise ExportError(
                f"float_precision: '{float_precision}' is for openvino, and '{self.engine}' has no such choice; "
                "leave it out or give the engine openvino"
            )
        return {"float_precision": float_precision}

    def _run(self, image: np.ndarray) -> np.ndarray:
        return self._speedup.inference(torch.from_numpy(np.ascontiguousarray(image))[None])[0][0].numpy()

    def _measure_scale(self) -> int:
        shape = self._run(np.zeros((self.channels, PROBE, PROBE), np.float32)).shape
        if len(shape) != 3 or shape[0] != self.channels or shape[1] != shape[2] or shape[1] % PROBE:
            raise ExportError(
                f"'{self.path}' turns {PROBE} x {PROBE} pixels into an array of shape {shape}; "
                "give a network that enlarges images by a whole factor"
            )
        return shape[1] // PROBE

    def _range(self, entries: dict[str, str], given: float | None) -> float:
        stated = value_range_of(entries if given is None else {RANGE_KEY: str(given)})
        if stated is None:
            raise ExportError(
                f"'{self.path}' does not say whether white is 1 or 255 in its images; add --value-range 1 or "
                "--value-range 255 (files of srq export say it)"
            )
        return stated


def _first_engine() -> str:
    found = engines_here()
    if not found:
        raise ExportError('there is no engine to run the network; install one with: pip install "srq-nni[openvino]"')
    return found[0]


def _engine_for(written_for: str | None) -> str:
    """Return the engine a file was written for, or the first that runs here."""
    if written_for is not None and runs_here(get_rules(written_for).name):
        return written_for
    engine = _first_engine()
    if written_for is not None:
        logger.warning("the file was written for %s, which does not run here; %s runs it", written_for, engine)
    return engine
