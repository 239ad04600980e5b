"""Run a Python program as if this CPU had AVX-VNNI: the int8 kernels that engines have for such CPUs then run here.

    python -m tests.emulation.avx_vnni -m pytest tests/speedup/test_matrix.py -k 8_bits
    python -m tests.emulation.avx_vnni benchmarks/exactness.py --out FILE

OpenVINO and ONNX Runtime choose kernels by CPUID and compile or contain the instructions of the CPU they find. They run
here from copies whose CPUID instructions trap; ``avx_vnni.c`` answers these and computes what the CPU does not know.
What a kernel computes is then what it computes on a CPU with AVX-VNNI, bit by bit; how long it takes says nothing.
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
TRAP = b"\x0f\x0a"  # as avx_vnni.c expects it
# The libraries of each engine that look for instructions of the CPU.
LIBRARIES = {
    "openvino": ("libs/libopenvino.so.*", "libs/libopenvino_intel_cpu_plugin.so"),
    "onnxruntime": ("capi/onnxruntime_pybind11_state*.so",),
}


@dataclass(frozen=True)
class Computed:
    """What was emulated: VNNI instructions, places in the code that had one, and answers of CPUID."""

    instructions: int
    places: int
    answers: int

    def __str__(self) -> str:
        return (
            f"AVX-VNNI emulated: {self.instructions:,} instructions at {self.places:,} places; "
            f"CPUID answered {self.answers:,} times"
        )


def missing() -> str | None:
    """Return what keeps this machine from emulating AVX-VNNI, in words; None if it can."""
    flags = cpu_flags()
    if platform.system() != "Linux" or platform.machine() != "x86_64" or "avx2" not in flags:
        return "the emulation of AVX-VNNI needs Linux on an x86-64 CPU with AVX2"
    if flags & {"avx_vnni", "avx512_vnni", "amx_int8"}:
        return "this CPU has VNNI, there is nothing to emulate"
    if shutil.which(_compiler()) is None:
        return f"the emulation of AVX-VNNI needs a C compiler, and {_compiler()} was not found"
    return None


@contextlib.contextmanager
def environment(report: Path) -> Iterator[dict[str, str]]:
    """Give the environment variables of a process that shall have AVX-VNNI; its files are gone afterwards.

    Args:
        report: file that gets a line of each process; :func:`read_report` adds them up.

    Raises:
        RuntimeError: see :func:`missing`; or the C source does not compile.
    """
    if (reason := missing()) is not None:
        raise RuntimeError(f"{reason}.")
    with tempfile.TemporaryDirectory(prefix="avx_vnni-") as name:
        folder = Path(name)
        for package, patterns in LIBRARIES.items():
            _copy(package, patterns, folder)
        paths = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
        yield {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "LD_PRELOAD": str(_compile(folder)),
            "AVX_VNNI_CPUINFO": str(_write_cpuinfo(folder)),
            "AVX_VNNI_REPORT": str(report.resolve()),
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


def _compiler() -> str:
    return os.environ.get("CC", "cc")


def _compile(folder: Path) -> Path:
    library = folder / "avx_vnni.so"
    command = [_compiler(), "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    return library


def _write_cpuinfo(folder: Path) -> Path:
    """Write what Linux says about the CPU, with AVX-VNNI among its flags and the emulation in its name."""
    more = {"flags": " avx_vnni", "model name": ", AVX-VNNI emulated"}
    lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    path = folder / "cpuinfo"
    path.write_text(
        "".join(f"{line}{more.get(line.partition(':')[0].strip(), '')}\n" for line in lines), encoding="utf-8"
    )
    return path


def main(arguments: list[str]) -> int:
    """Run Python with these arguments in a process that has AVX-VNNI, and print what was emulated."""
    if not arguments:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "report"
        with environment(report) as variables:
            code = subprocess.run([sys.executable, *arguments], env=variables).returncode
        sys.stderr.write(f"{read_report(report)}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
