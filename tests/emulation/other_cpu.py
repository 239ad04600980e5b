"""Run a Python program as if this were another CPU: the kernels that engines have for such CPUs then run here.

    python -m tests.emulation.other_cpu avx2 -m pytest tests/speedup/test_matrix.py -k 8_bits
    python -m tests.emulation.other_cpu avx_vnni benchmarks/exactness.py --out FILE

``avx2`` has no VNNI: sums of two products of bytes saturate. ``avx_vnni`` sums them in int32, as Intel's Alder Lake
does; ``avx_ne_convert`` also has products of int8 and the conversions of bfloat16, as Sierra Forest does. These three
run on every CPU with AVX2. ``avx512`` has no VNNI, as Skylake's servers, and ``avx512_vnni`` no bfloat16, as Ice
Lake's; both take a CPU with AVX-512. ``amx`` multiplies tiles of int8 and bfloat16, as Sapphire Rapids does, and
takes a CPU with the AVX-512 of that, as Zen 4 and 5 have; a program that computes in half precision ends there.

OpenVINO and ONNX Runtime choose kernels by CPUID and compile or contain the instructions of the CPU they find. They run
here from copies whose CPUID and XGETBV instructions trap; ``other_cpu.c`` answers these and computes what the CPU does
not know. What a kernel computes is then what it computes on such a CPU, bit by bit; how long it takes says nothing.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from srq_nni.speedup.machine import CPUINFO, cpu_flags
from tests.emulation.instruction_sites import CPUID, XGETBV, instruction_sites

SOURCE = Path(__file__).with_suffix(".c")
ROOT = SOURCE.parent.parent.parent
LIBRARY = "other_cpu.so"
TRAPS = {CPUID: b"\x0f\x0a", XGETBV: b"\x0f\x04\x90"}  # as other_cpu.c expects them
# The libraries of each engine that look for instructions of the CPU.
LIBRARIES = {
    "openvino": ("libs/libopenvino.so.*", "libs/libopenvino_intel_cpu_plugin.so"),
    "onnxruntime": ("capi/onnxruntime_pybind11_state*.so",),
}


# What CPUs differ in, in Linux's words: part of CPUID's leaf 7, register (EAX, EBX, ECX, EDX) and bit.
BITS = {
    "avx512f": (0, 1, 16),
    "avx512dq": (0, 1, 17),
    "avx512ifma": (0, 1, 21),
    "avx512cd": (0, 1, 28),
    "avx512bw": (0, 1, 30),
    "avx512vl": (0, 1, 31),
    "avx512vbmi": (0, 2, 1),
    "avx512_vbmi2": (0, 2, 6),
    "avx512_vnni": (0, 2, 11),
    "avx512_bitalg": (0, 2, 12),
    "avx512_vpopcntdq": (0, 2, 14),
    "avx512_vp2intersect": (0, 3, 8),
    "amx_bf16": (0, 3, 22),
    "avx512_fp16": (0, 3, 23),
    "amx_tile": (0, 3, 24),
    "amx_int8": (0, 3, 25),
    "avx_vnni": (1, 0, 4),
    "avx512_bf16": (1, 0, 5),
    "amx_fp16": (1, 0, 21),
    "avx_ifma": (1, 0, 23),
    "avx_vnni_int8": (1, 3, 4),
    "avx_ne_convert": (1, 3, 5),
    "amx_complex": (1, 3, 8),
    "avx_vnni_int16": (1, 3, 10),
    "avx10": (1, 3, 19),
}
# What other_cpu.c computes, where this CPU has it not.
AVX = frozenset({"avx_vnni", "avx_vnni_int8", "avx_ne_convert"})
AMX = frozenset({"amx_tile", "amx_int8", "amx_bf16"})
COMPUTED = AVX | AMX
CLAIMED = frozenset({"avx512_fp16"})  # not computed, but oneDNN uses no AMX without it
AVX512 = frozenset({"avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"})
AVX512_LATER = frozenset(
    {"avx512ifma", "avx512vbmi", "avx512_vbmi2", "avx512_vnni", "avx512_bitalg", "avx512_vpopcntdq", "avx512_bf16"}
)
# Which of these each CPU has; it has none of the others, and all else that this CPU has.
CPUS = {
    "avx2": frozenset[str](),
    "avx_vnni": frozenset({"avx_vnni"}),
    "avx_ne_convert": AVX,
    "avx512": AVX512,
    "avx512_vnni": AVX512 | {"avx512_vnni"},
    "amx": AVX512 | AVX512_LATER | {"avx_vnni"} | AMX | CLAIMED,
}


@dataclass(frozen=True)
class Computed:
    """What was emulated: instructions, places in the code that had one, and answers to CPUID and XGETBV."""

    instructions: int
    places: int
    answers: int

    def __str__(self) -> str:
        return (
            f"emulated: {self.instructions:,} instructions at {self.places:,} places; "
            f"CPUID and XGETBV answered {self.answers:,} times"
        )


def missing(cpu: str) -> str | None:
    """Return what keeps this machine from emulating a CPU, in words; None if it can."""
    flags = cpu_flags()
    if platform.system() != "Linux" or platform.machine() != "x86_64" or "avx2" not in flags:
        return "the emulation needs Linux on an x86-64 CPU with AVX2"
    if lacking := sorted(CPUS[cpu] - COMPUTED - CLAIMED - flags):
        return f"{cpu} takes a CPU that has {', '.join(lacking)}"
    if CPUS[cpu] == flags & BITS.keys():
        return f"this CPU is like {cpu} itself"
    if shutil.which(compiler()) is None:
        return f"the emulation needs a C compiler, and {compiler()} was not found"
    return None


def write_copies(folder: Path) -> None:
    """Put into ``folder`` what all emulated CPUs share: the engines whose questions trap, and the library that answers.

    Raises:
        RuntimeError: the C source does not compile.
    """
    _compile(folder)
    for package, patterns in LIBRARIES.items():
        _copy(package, patterns, folder)


def environment(cpu: str, copies: Path, report: Path) -> dict[str, str]:
    """Return the environment variables of a process that shall see another CPU.

    Args:
        cpu: key of ``CPUS``.
        copies: folder from :func:`write_copies`, which must stay for as long as the process runs.
        report: file that gets a line of each process; :func:`read_report` adds them up.

    Raises:
        RuntimeError: see :func:`missing`.
    """
    if (reason := missing(cpu)) is not None:
        raise RuntimeError(f"{reason}.")
    paths = [str(copies), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "LD_PRELOAD": str(copies / LIBRARY),
        "OTHER_CPU_BITS": _bits(CPUS[cpu]),
        "OTHER_CPU_CPUINFO": str(_write_cpuinfo(cpu, copies)),
        "OTHER_CPU_REPORT": str(report.resolve()),
    }


def read_report(report: Path) -> Computed:
    """Add up what the processes wrote that ran in the :func:`environment` of ``report``."""
    lines = report.read_text(encoding="ascii").splitlines() if report.exists() else []
    return Computed(*(sum(int(line.split()[column]) for line in lines) for column in range(3)))


def _copy(package: str, patterns: tuple[str, ...], folder: Path) -> None:
    """Put a copy of an installed package into the folder: links, but for the libraries, whose questions trap."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return
    installed = Path(found.submodule_search_locations[0])
    copy = folder / package
    shutil.copytree(installed, copy, copy_function=os.symlink)
    for library in (path for pattern in patterns for path in installed.glob(pattern)):
        code = bytearray(library.read_bytes())
        for site, instruction in instruction_sites(library).items():
            code[site : site + len(instruction)] = TRAPS[instruction]
        target = copy / library.relative_to(installed)
        target.unlink()
        target.write_bytes(code)


def compiler() -> str:
    """Return the command of the C compiler."""
    return os.environ.get("CC", "cc")


def _compile(folder: Path) -> None:
    command = [compiler(), "-O3", "-shared", "-fPIC", "-o", str(folder / LIBRARY), str(SOURCE), "-ldl"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")


def _bits(has: frozenset[str]) -> str:
    """Return ``OTHER_CPU_BITS``: for each register the bits to clear, which are all of ``BITS``, and those to set."""
    masks = [[0, 0] for _ in range(8)]
    for flag, (part, register, bit) in BITS.items():
        masks[4 * part + register][0] |= 1 << bit
        masks[4 * part + register][1] |= (flag in has) << bit
    return " ".join(f"{mask:x}" for pair in masks for mask in pair)


def _write_cpuinfo(cpu: str, folder: Path) -> Path:
    """Write what Linux would say of the CPU, with its flags and the emulation in its name."""
    lines = []
    for line in CPUINFO.read_text(encoding="utf-8").splitlines():
        field = line.partition(":")[0].strip()
        if field == "flags":
            has = (set(line.partition(":")[2].split()) - BITS.keys()) | CPUS[cpu]
            line = f"{line.partition(':')[0]}: {' '.join(sorted(has))}"
        elif field == "model name":
            line += f", {cpu} emulated"
        lines.append(f"{line}\n")
    path = folder / f"cpuinfo_{cpu}"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def main(arguments: list[str]) -> int:
    """Run Python with all arguments but the first, the CPU, and print what was emulated."""
    if len(arguments) < 2 or arguments[0] not in CPUS:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    cpu, *program = arguments
    if (reason := missing(cpu)) is not None:
        sys.stderr.write(f"{reason}\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="other_cpu-") as name:
        folder = Path(name)
        write_copies(folder)
        variables = environment(cpu, folder, folder / "report")
        code = subprocess.run([sys.executable, *program], env=variables).returncode
        sys.stderr.write(f"{read_report(folder / 'report')}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
