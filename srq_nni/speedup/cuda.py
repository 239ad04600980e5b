"""The NVIDIA GPU as TensorRT needs it, all through torch: memory, a stream, and the time between two events."""

from __future__ import annotations

from collections.abc import Callable

import torch

from srq_nni.errors import ExportError


class Cuda:
    """Memory and one stream of the current GPU.

    Raises:
        ExportError: if torch sees no GPU.
    """

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise ExportError(
                "TensorRT builds and runs engines on an NVIDIA GPU, and torch sees none here; on a machine without one "
                "write the file with export_onnx(..., engine='tensorrt') and build the engine where it will run, "
                "or use OpenVINO"
            )
        self._stream = torch.cuda.Stream()

    def put(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` as contiguous float32 on the GPU."""
        return x.detach().to("cuda", torch.float32).contiguous()

    def empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return float32 memory on the GPU."""
        return torch.empty(shape, dtype=torch.float32, device="cuda")

    def timed(self, enqueue: Callable[[int], bool]) -> tuple[bool, float]:
        """Call ``enqueue`` with the stream's handle; return its answer and the seconds the GPU worked on it."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._stream.wait_stream(torch.cuda.current_stream())  # the input has to be there
        start.record(self._stream)
        done = bool(enqueue(self._stream.cuda_stream))
        end.record(self._stream)
        end.synchronize()
        return done, start.elapsed_time(end) / 1000
