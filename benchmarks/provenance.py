"""What stands beside every measured number: date, commit, machine class, versions."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

import torch


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    flags = {name.strip(): value for name, value in fields.items()}.get("flags", "")
    vector = next((name for name in ("amx_int8", "avx512_vnni", "avx_vnni", "avx512f", "avx2") if name in flags), "?")
    model = {name.strip(): value.strip() for name, value in fields.items()}.get("model name", platform.machine())
    return f"{model} ({vector}), {os.cpu_count()} cores"


def provenance() -> str:
    """Return one line: date, commit, processor, torch version and threads."""
    commit = _output("git", "rev-parse", "--short", "HEAD").strip() or "unknown"
    dirty = " with changes" if _output("git", "status", "--porcelain", "--untracked-files=no").strip() else ""
    return (
        f"{datetime.date.today().isoformat()}, commit {commit}{dirty}, {_processor()}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
