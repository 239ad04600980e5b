"""Where the code of an x86-64 library asks what the CPU has: its CPUID and XGETBV instructions.

Their few bytes also occur inside other instructions. Only code that is disassembled from the start of its function
tells them apart; where functions start is listed in ``.eh_frame_hdr``, also in stripped libraries.
"""

from __future__ import annotations

import bisect
import io
import struct
from pathlib import Path

import capstone
from elftools.elf.elffile import ELFFile

CPUID = b"\x0f\xa2"
XGETBV = b"\x0f\x01\xd0"
MNEMONICS = {CPUID: "cpuid", XGETBV: "xgetbv"}
# DW_EH_PE encodings of a table of pairs of 32-bit offsets from the start of its header, as linkers write it.
SORTED_TABLE = bytes([1, 0x1B, 0x03, 0x3B])
EXECUTABLE = 1


def instruction_sites(library: Path) -> dict[int, bytes]:
    """Return the offsets of all CPUID and XGETBV instructions in the file, each with the bytes of the instruction.

    Raises:
        ValueError: the library has no table of its functions.
    """
    code = library.read_bytes()
    elf = ELFFile(io.BytesIO(code))
    starts = _function_starts(elf, code)
    if not starts:
        raise ValueError(f"{library} has no table of its functions (.eh_frame_hdr), so its code cannot be read.")
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    sites = {}
    for segment in elf.iter_segments("PT_LOAD"):
        if not segment["p_flags"] & EXECUTABLE:
            continue
        shift = segment["p_offset"] - segment["p_vaddr"]
        end = segment["p_offset"] + segment["p_filesz"]
        for instruction, mnemonic in MNEMONICS.items():
            place = code.find(instruction, segment["p_offset"], end)
            while place != -1:
                start = starts[bisect.bisect_right(starts, place - shift) - 1] + shift
                found = decoder.disasm_lite(code[start : place + len(instruction)], start)
                if any((address, name) == (place, mnemonic) for address, _, name, _ in found):
                    sites[place] = instruction
                place = code.find(instruction, place + 1, end)
    return sites


def _function_starts(elf: ELFFile, code: bytes) -> list[int]:
    """Return the addresses of all functions, ascending."""
    for header in elf.iter_segments("PT_GNU_EH_FRAME"):
        place, address = header["p_offset"], header["p_vaddr"]
        if code[place : place + 4] == SORTED_TABLE:
            (count,) = struct.unpack_from("<I", code, place + 8)
            table = struct.iter_unpack("<ii", code[place + 12 : place + 12 + 8 * count])
            return sorted(address + start for start, _ in table)
    return []
