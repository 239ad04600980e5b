"""Packed codes: a closed form of the bytes, and a round trip for any grid and shape."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srq_nni.errors import QuantizationError
from srq_nni.quantization.bit_packing import code_width, pack_codes, packed_bytes, unpack_codes
from srq_nni.quantization.grid import IntegerGrid, step_count, symmetric_maximum


@st.composite
def grids(draw: st.DrawFn) -> IntegerGrid:
    """PAMS grids, mid-rise ones, DDTB grids, and those of the released code with 2^bits + 1 levels."""
    bits = draw(st.integers(2, 8))
    n, steps = symmetric_maximum(bits), step_count(bits)
    if draw(st.booleans()):
        return IntegerGrid(0.5, -n, n, bits)
    if draw(st.booleans()):
        return IntegerGrid(0.5, -steps, steps, bits, midrise=True)
    levels = step_count(bits) + draw(st.integers(0, 1))
    minimum = draw(st.integers(-levels, 0))
    return IntegerGrid(0.5, minimum, minimum + levels, bits)


def codes_on(grid: IntegerGrid, shape: list[int], seed: int) -> torch.Tensor:
    levels = torch.randint(grid.levels, shape, generator=torch.Generator().manual_seed(seed))
    return grid.minimum + grid.stride * levels


@given(grids(), st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_round_trip(grid: IntegerGrid, shape: list[int], seed: int) -> None:
    codes = codes_on(grid, shape, seed)
    packed = pack_codes(codes, grid)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_bytes(codes.numel(), code_width(grid)),)
    assert torch.equal(unpack_codes(packed, grid, tuple(shape)), codes)
    assert torch.equal(pack_codes(codes.float(), grid), packed)


@given(grids(), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_bytes_are_the_digits_of_one_number(grid: IntegerGrid, count: int, seed: int) -> None:
    """Lowest bits first, the stream is sum of (code - minimum) / stride 2^(i width), written in base 256."""
    codes = codes_on(grid, [count], seed)
    width = code_width(grid)
    number = sum((int(code) - grid.minimum) // grid.stride << (place * width) for place, code in enumerate(codes))
    assert bytes(pack_codes(codes, grid).tolist()) == number.to_bytes(packed_bytes(count, width), "little")


@pytest.mark.parametrize("bits", range(2, 9))
def test_width_is_the_number_of_bits(bits: int) -> None:
    n, steps = symmetric_maximum(bits), step_count(bits)
    assert code_width(IntegerGrid(1.0, -n, n, bits)) == bits
    assert code_width(IntegerGrid(1.0, -3, steps - 3, bits)) == bits
    assert code_width(IntegerGrid(1.0, -steps, steps, bits, midrise=True)) == bits
    assert code_width(IntegerGrid(1.0, -3, steps - 2, bits)) == bits + 1  # 2^bits + 1 levels


def test_a_size_that_no_file_has_is_refused_before_anything_is_allocated() -> None:
    grid = IntegerGrid(1.0, -1, 1, 2)
    with pytest.raises(QuantizationError) as error:
        unpack_codes(torch.zeros(4, dtype=torch.uint8), grid, (2**31, 2**31, 2**31))
    assert str(error.value) == (
        "codes of shape (2147483648, 2147483648, 2147483648) at 2 bits take 2475880078570760549798248448 bytes and "
        "4 of torch.uint8 are there; give the bytes that pack_codes returned"
    )
    with pytest.raises(QuantizationError, match=r"^codes of shape \(-1, 4\) at 2 bits take "):
        unpack_codes(torch.zeros(1, dtype=torch.uint8), grid, (-1, 4))


def test_codes_outside_the_grid_are_refused() -> None:
    grid = IntegerGrid(1.0, -1, 1, 2)
    with pytest.raises(QuantizationError) as error:
        pack_codes(torch.tensor([0, 2]), grid)
    assert str(error.value) == "codes from 0 to 2 are not on a grid from -1 to 1; give codes of this grid"
    with pytest.raises(QuantizationError, match=r"^codes from -1 to 2 are not on a grid"):
        unpack_codes(torch.tensor([0b1100], dtype=torch.uint8), grid, (2,))


def test_even_codes_are_refused_where_they_are_no_levels() -> None:
    grid = IntegerGrid(1.0, -3, 3, 2, midrise=True)
    with pytest.raises(QuantizationError) as error:
        pack_codes(torch.tensor([1, 2, -3, 3, -1]), grid)
    assert str(error.value) == ("code 2 is even and those of a mid-rise grid are odd; give codes of this grid")
