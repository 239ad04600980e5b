"""Integer codes as a dense stream of bits: 2-bit codes take a quarter of a byte, 3-bit codes three eighths.

Code number i takes bits i * width to (i + 1) * width - 1, its lowest bit first; bit j is bit j % 8 of byte j // 8. What
is stored is the number of the level, (code - minimum) / stride, and the last byte is filled up with zeros.
"""

from __future__ import annotations

import numpy as np
import torch

from srq_nni.errors import QuantizationError
from srq_nni.quantization.grid import IntegerGrid


def code_width(grid: IntegerGrid) -> int:
    """Return the bits that one code of ``grid`` takes: those of the grid, or one more for 2^bits + 1 levels."""
    return (grid.levels - 1).bit_length()


def packed_bytes(count: int, width: int) -> int:
    """Return the size of ``count`` codes of ``width`` bits, in bytes."""
    return (count * width + 7) // 8


def pack_codes(codes: torch.Tensor, grid: IntegerGrid) -> torch.Tensor:
    """Return ``codes`` (integers of any shape and dtype, row by row) as a 1-d uint8 tensor.

    Raises:
        QuantizationError: if a code is none of the grid.
    """
    _check_codes(codes, grid)
    levels = (codes.detach().cpu().reshape(-1).long() - grid.minimum) // grid.stride
    stored = levels.numpy().astype("<u2")
    bits = np.unpackbits(stored.view(np.uint8).reshape(-1, 2), axis=1, bitorder="little")[:, : code_width(grid)]
    return torch.from_numpy(np.packbits(bits.reshape(-1), bitorder="little"))


def unpack_codes(packed: torch.Tensor, grid: IntegerGrid, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the codes that ``pack_codes`` packed, int64 of ``shape``.

    Raises:
        QuantizationError: if ``packed`` is not as long as ``shape`` says, or holds a code outside the grid.
    """
    count, width = int(np.prod(shape, dtype=object)), code_width(grid)
    if packed.dtype != torch.uint8 or packed.shape != (packed_bytes(count, width),):
        raise QuantizationError(
            f"codes of shape {shape} at {width} bits take {packed_bytes(count, width)} bytes and {packed.numel()} of "
            f"{packed.dtype} are there; give the bytes that pack_codes returned"
        )
    bits = np.unpackbits(packed.numpy(), count=count * width, bitorder="little").reshape(count, width)
    stored = np.zeros((count, 2), np.uint8)
    spread = np.packbits(bits, axis=1, bitorder="little")
    stored[:, : spread.shape[1]] = spread
    levels = torch.from_numpy(stored.view("<u2").astype(np.int64).reshape(shape))
    codes = levels * grid.stride + grid.minimum
    _check_codes(codes, grid)
    return codes


def _check_codes(codes: torch.Tensor, grid: IntegerGrid) -> None:
    if codes.numel() and not (grid.minimum <= int(codes.min()) and int(codes.max()) <= grid.maximum):
        raise QuantizationError(
            f"codes from {int(codes.min())} to {int(codes.max())} are not on a grid from {grid.minimum} to "
            f"{grid.maximum}; give codes of this grid"
        )
    even = codes[codes.long() % 2 == 0] if grid.midrise else codes[:0]
    if even.numel():
        raise QuantizationError(
            f"code {int(even.flatten()[0])} is even and those of a mid-rise grid are odd; give codes of this grid"
        )
