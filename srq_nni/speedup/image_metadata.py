"""What a program has to know to feed images to an ONNX file, kept in its ``metadata_props``.

``scale`` is the enlargement, ``value_range`` the value of white in input and output (networks of BasicSR: 1),
``colours`` the order of three channels, ``srq_version`` the version that wrote the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from srq_nni.errors import ExportError
from srq_nni.speedup.lazy import import_or_explain
from srq_nni.speedup.receptive_field import receptive_field

FORMAT_KEY, FORMAT_VERSION = "srq_format", 1
RANGE_KEY = "value_range"


def write_metadata(proto: Any, entries: Mapping[str, str]) -> None:
    """Set the ``metadata_props`` of an ``onnx.ModelProto`` to what it says of images and ``entries``, which win.

    Raises:
        ExportError: for a value range that is no positive number.
    """
    from srq_nni import __version__

    known = {FORMAT_KEY: str(FORMAT_VERSION), "srq_version": __version__, "colours": "rgb", RANGE_KEY: "1"}
    scale = receptive_field(proto).scale
    if scale is not None:
        known["scale"] = str(scale)
    known.update(entries)
    value_range_of(known)
    import_or_explain("onnx", "onnx").helper.set_model_props(proto, known)
    proto.producer_name = "srq-nni"


def read_metadata(proto: Any) -> dict[str, str]:
    """Return the ``metadata_props`` of an ``onnx.ModelProto``.

    Raises:
        ExportError: if a newer version wrote the file.
    """
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    version = entries.get(FORMAT_KEY, "")
    if version.isdigit() and int(version) > FORMAT_VERSION:
        raise ExportError(
            f"the ONNX file has format {version} and this version reads up to {FORMAT_VERSION}; update srq-nni"
        )
    return entries


def value_range_of(entries: Mapping[str, str]) -> float | None:
    """Return the value of white, 1 for older files of ours, None for files of others that do not say it.

    Raises:
        ExportError: if it is no positive number.
    """
    text = entries.get(RANGE_KEY, "1" if FORMAT_KEY in entries else None)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ExportError(f"{RANGE_KEY}: {text!r} is not allowed; give the value of white, such as 1 or 255")
    return value
