"""Batches out of what users call a calibrator: NNI's ``Calibrator``, a DataLoader, or any iterable of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from srq_nni.errors import ExportError

WANTED = (
    "give an iterable of float tensors (N, C, H, W), such as a DataLoader, "
    "or a calibrator with the images as `data` and a `batch_size`"
)


def calibration_batches(calibrator: Any) -> Iterator[torch.Tensor]:
    """Yield float32 tensors (N, C, H, W) on the CPU.

    Args:
        calibrator: an object with ``data`` (K, C, H, W) and ``batch_size``, as NNI's ``Calibrator`` has them, or an
            iterable of tensors, arrays, BasicSR's ``{"lq": ...}``, or tuples that begin with the images.

    Raises:
        ExportError: for anything else, and if there is no batch at all.
    """
    count = 0
    for count, batch in enumerate(_items(calibrator), start=1):  # noqa: B007 - counted for the check below
        yield _images(batch)
    if count == 0:
        raise ExportError(f"calib: {_named(calibrator)} without a single batch is not allowed; {WANTED}")


def _items(calibrator: Any) -> Iterator[Any]:
    if hasattr(calibrator, "data") and hasattr(calibrator, "batch_size"):
        data, size = calibrator.data, int(calibrator.batch_size)
        yield from (data[start : start + size] for start in range(0, len(data), max(size, 1)))
        return
    try:
        yield from iter(calibrator)
    except TypeError:
        raise ExportError(f"calib: {_named(calibrator)} gives no images that torch can read; {WANTED}") from None


def _images(batch: Any) -> torch.Tensor:
    if isinstance(batch, Mapping):
        batch = batch.get("lq")
    if isinstance(batch, list | tuple) and batch:
        batch = batch[0]
    if isinstance(batch, np.ndarray):
        batch = torch.from_numpy(batch)
    if not isinstance(batch, torch.Tensor) or batch.dim() != 4 or not batch.is_floating_point():
        found = (
            f"a tensor of shape {tuple(batch.shape)} and dtype {batch.dtype}"
            if isinstance(batch, torch.Tensor)
            else _named(batch)
        )
        raise ExportError(f"calib: {found} is not a batch of images; {WANTED}")
    return batch.detach().cpu().float()


def _named(value: Any) -> str:
    return f"an object of type '{type(value).__name__}'"
