"""What a program has to know to feed images to an ONNX file: its input, and what its ``metadata_props`` say.

``scale`` is the enlargement, ``value_range`` the value of white in input and output (networks of BasicSR: 1),
``colours`` the order of three channels, ``srq_version`` the version that wrote the file.
"""

from __future__ import annotations

import os
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


def image_channels(proto: Any, path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> int:
    """Return the channels of the one image that goes in, after checking that one image goes in and one comes out.

    Args:
        proto: ``onnx.ModelProto``.
        path: of its file, for messages.
        size: (height, width) that it has to take; None for any.

    Raises:
        ExportError: if it is no network for images of this size.
    """
    weights = {constant.name for constant in proto.graph.initializer}
    inputs = [entry for entry in proto.graph.input if entry.name not in weights]
    if len(inputs) != 1 or len(proto.graph.output) != 1:
        raise ExportError(
            f"'{path}' has {len(inputs)} inputs and {len(proto.graph.output)} outputs; "
            "give a network from one image to one image"
        )
    kind = inputs[0].type.tensor_type
    sizes = [entry.dim_value if entry.HasField("dim_value") else None for entry in kind.shape.dim]
    onnx = import_or_explain("onnx", "onnx")
    if len(sizes) != 4 or sizes[1] not in (1, 3) or kind.elem_type != onnx.TensorProto.FLOAT:
        dtype = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
        shown = " x ".join("?" if length is None else str(length) for length in sizes)
        raise ExportError(
            f"'{path}' takes {dtype} of shape {shown}; give a network for float images (N, C, H, W) of 1 or 3 channels"
        )
    _check_size(sizes[2:], path, size)
    return int(sizes[1])


def _check_size(taken: list[int | None], path: str | os.PathLike[str], size: tuple[int, int] | None) -> None:
    wanted = size or (None, None)
    if any(length is not None and length != asked for length, asked in zip(taken, wanted, strict=True)):
        height, width = ("?" if length is None else length for length in taken)
        given = "" if size is None else f"give the size {height}x{width} (height x width), or "
        raise ExportError(
            f"'{path}' takes images of {width} x {height} pixels only; {given}export it with a free height and width"
        )
