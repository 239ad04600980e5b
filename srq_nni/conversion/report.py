"""What a conversion wrote, and the checks of the file to write that both directions share."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from srq_nni.atomic import file_to_write
from srq_nni.errors import OptionError

RECORD_KEY = "conversion"  # beside params: what the way back needs and our format has no place for


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        path: the new file.
        description: what became what.
        network: the ``network_g`` block that fits our file; None on the way back.
        quantization: the ``quantization`` block of a student.
        notes: what was assumed, left out, or is not the same on the other side.
    """

    path: Path
    description: str
    network: dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.description}", *(f"note: {note}" for note in self.notes)]
        for name, block in (("network_g", self.network), ("quantization", self.quantization)):
            if block is not None:
                lines += [f"{name}:", *(f"  {_yaml_line(key, value)}" for key, value in block.items())]
        return "\n".join(lines)


def _yaml_line(key: str, value: Any) -> str:
    return yaml.safe_dump({key: value}, default_flow_style=None, width=1000).strip().removeprefix("{").removesuffix("}")


def check_output(path: str | os.PathLike[str], output: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Return where to write.

    Raises:
        WriteError: if it is a folder, its folder is missing, or it is the input itself.
        OptionError: if it is a file already.
    """
    target = file_to_write(output, path)
    if target.exists() and not overwrite:
        raise OptionError(f"'{target}' exists; give another name, or --overwrite")
    return target
