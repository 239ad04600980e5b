"""What stands beside every measured number: date, commit, processor, the instructions it has, and versions."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Best first: what the int8 kernels of OpenVINO and ONNX Runtime would use.
X86_SETS = ("amx_int8", "avx512_vnni", "avx_vnni_int8", "avx_vnni", "avx512f", "avx2", "sse4_1")
INSTRUCTION_SETS = (*X86_SETS, "i8mm", "asimddp")
BFLOAT16 = ("amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16")
PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "tensorrt")


@dataclass(frozen=True)
class Machine:
    """Where something was measured.

    Attributes:
        date: of today, ISO 8601.
        commit: short hash of the checkout the code ran from, with ``+`` after it if files were changed; None elsewhere.
        processor: its name.
        instruction_set: the best for int8 that the processor has, such as ``amx_int8``, ``avx512_vnni``, ``avx2``.
        bfloat16: whether it has instructions for bfloat16, to multiply or to convert.
        cores: of the machine.
        load: processes that were running or waiting, in the minute before.
        versions: of the packages that count here and are installed.
    """

    date: str
    commit: str | None
    processor: str
    instruction_set: str
    bfloat16: bool
    cores: int
    load: float | None
    versions: dict[str, str]

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        load = "" if self.load is None else f", load {self.load:.1f}"
        return (
            f"{self.date}, commit {self.commit or 'unknown'}, {self.processor} ({self.instruction_set}, "
            f"{'bfloat16' if self.bfloat16 else 'no bfloat16'}), {self.cores} cores{load}, {versions}"
        )


def this_machine(cpuinfo: Path = CPUINFO) -> Machine:
    """Return the machine this runs on, now."""
    flags = cpu_flags(cpuinfo)
    return Machine(
        datetime.date.today().isoformat(),
        _commit(),
        _processor(cpuinfo),
        next((name for name in INSTRUCTION_SETS if name in flags), "unknown"),
        any(name in flags for name in BFLOAT16),
        os.cpu_count() or 1,
        os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        {name: version for name in PACKAGES if (version := _version(name))},
    )


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Return what the processor can do, in Linux's words; empty where that cannot be found out."""
    fields = _fields(cpuinfo)
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


def _fields(cpuinfo: Path) -> dict[str, str]:
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _processor(cpuinfo: Path) -> str:
    return _fields(cpuinfo).get("model name") or platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str | None:
    """Return the commit of the folder this file is in, if git tracks it."""
    here = Path(__file__).resolve()
    try:
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", here.name], cwd=here.parent, capture_output=True, check=True
        )
        commit, changes = (
            subprocess.run(["git", *words], cwd=here.parent, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+" if changes else commit
