"""Run a Python program as if this were a newer CPU: the kernels that engines have for such CPUs then run here.

    python -m tests.emulation.newer_cpu avx_vnni -m pytest tests/speedup/test_matrix.py -k 8_bits
    python -m tests.emulation.newer_cpu avx_vnni benchmarks/exactness.py --out FILE

``avx_vnni`` has the products of bytes that are summed in int32, as Intel's Alder Lake does; ``avx_ne_convert`` also
those of int8 and the conversions of bfloat16, as Sierra Forest does.

OpenVINO and ONNX Runtime choose kernels by CPUID and compile or contain the instructions of the CPU they find. They run
here from copies whose CPUID instructions trap; ``newer_cpu.c`` answers these and computes what the CPU does not know.
What a kernel computes is then what it computes on such a CPU, bit by bit; how long it takes says nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from srq_nni.speedup.machine import CPUINFO, cpu_flags
from tests.emulation.cpuid_sites import CPUID, cpuid_sites

SOURCE = Path(__file__).with_suffix(".c")
ROOT = SOURCE.parent.parent.parent
TRAP = b"\x0f\x0a"  # as newer_cpu.c expects it
# The libraries of each engine that look for instructions of the CPU.
LIBRARIES = {
    "openvino": ("libs/libopenvino.so.*", "libs/libopenvino_intel_cpu_plugin.so"),
    "onnxruntime": ("capi/onnxruntime_pybind11_state*.so",),
}


@dataclass(frozen=True)
class NewerCPU:
    """A CPU to emulate: what Linux calls its additions, and their bits in EAX and EDX of leaf 7, part 1 of CPUID."""

    flags: str
    eax: int
    edx: int


CPUS = {
    "avx_vnni": NewerCPU("avx_vnni", 1 << 4, 0),
    "avx_ne_convert": NewerCPU("avx_vnni avx_vnni_int8 avx_ne_convert", 1 << 4, 1 << 4 | 1 << 5),
}


@dataclass(frozen=True)
class Computed:
    """What was emulated: instructions, places in the code that had one, and answers of CPUID."""

    instructions: int
    places: int
    answers: int

    def __str__(self) -> str:
        return (
            f"emulated: {self.instructions:,} instructions at {self.places:,} places; "
            f"CPUID answered {self.answers:,} times"
        )


def missing() -> str | None:
    """Return what keeps this machine from emulating a newer CPU, in words; None if it can."""
    flags = cpu_flags()
    if platform.system() != "Linux" or platform.machine() != "x86_64" or "avx2" not in flags:
        return "the emulation needs Linux on an x86-64 CPU with AVX2"
    if flags & {"avx_vnni", "avx512_vnni", "amx_int8"}:
        return "this CPU has VNNI itself"
    if shutil.which(compiler()) is None:
        return f"the emulation needs a C compiler, and {compiler()} was not found"
    return None


@contextlib.contextmanager
def environment(cpu: str, report: Path) -> Iterator[dict[str, str]]:
    """Give the environment variables of a process that shall see another CPU; its files are gone afterwards.

    Args:
        cpu: key of ``CPUS``.
        report: file that gets a line of each process; :func:`read_report` adds them up.

    Raises:
        RuntimeError: see :func:`missing`; or the C source does not compile.
    """
    if (reason := missing()) is not None:
        raise RuntimeError(f"{reason}.")
    with tempfile.TemporaryDirectory(prefix="newer_cpu-") as name:
        folder = Path(name)
        for package, patterns in LIBRARIES.items():
            _copy(package, patterns, folder)
        paths = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
        yield {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "LD_PRELOAD": str(_compile(folder)),
            "NEWER_CPU_EAX": f"{CPUS[cpu].eax:x}",
            "NEWER_CPU_EDX": f"{CPUS[cpu].edx:x}",
            "NEWER_CPU_CPUINFO": str(_write_cpuinfo(cpu, folder)),
            "NEWER_CPU_REPORT": str(report.resolve()),
        }


def read_report(report: Path) -> Computed:
    """Add up what the processes wrote that ran in the :func:`environment` of ``report``."""
    lines = report.read_text(encoding="ascii").splitlines() if report.exists() else []
    return Computed(*(sum(int(line.split()[column]) for line in lines) for column in range(3)))


def _copy(package: str, patterns: tuple[str, ...], folder: Path) -> None:
    """Put a copy of an installed package into the folder: links, but for the libraries, whose CPUIDs trap."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return
    installed = Path(found.submodule_search_locations[0])
    copy = folder / package
    shutil.copytree(installed, copy, copy_function=os.symlink)
    for library in (path for pattern in patterns for path in installed.glob(pattern)):
        code = bytearray(library.read_bytes())
        for site in cpuid_sites(library):
            code[site : site + len(CPUID)] = TRAP
        target = copy / library.relative_to(installed)
        target.unlink()
        target.write_bytes(code)


def compiler() -> str:
    """Return the command of the C compiler."""
    return os.environ.get("CC", "cc")


def _compile(folder: Path) -> Path:
    library = folder / "newer_cpu.so"
    command = [compiler(), "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    return library


def _write_cpuinfo(cpu: str, folder: Path) -> Path:
    """Write what Linux says about the CPU, with the additions among its flags and the emulation in its name."""
    more = {"flags": f" {CPUS[cpu].flags}", "model name": f", {cpu} emulated"}
    lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    path = folder / "cpuinfo"
    path.write_text(
        "".join(f"{line}{more.get(line.partition(':')[0].strip(), '')}\n" for line in lines), encoding="utf-8"
    )
    return path


def main(arguments: list[str]) -> int:
    """Run Python with all arguments but the first, the CPU, and print what was emulated."""
    if len(arguments) < 2 or arguments[0] not in CPUS:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "report"
        with environment(arguments[0], report) as variables:
            code = subprocess.run([sys.executable, *arguments[1:]], env=variables).returncode
        sys.stderr.write(f"{read_report(report)}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
