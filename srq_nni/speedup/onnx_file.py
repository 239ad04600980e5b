"""Reading an ONNX file: its tensors may lie in files beside it, and in no others.

An ONNX file can say of a tensor that its bytes are in another file, and an engine that follows such a path reads
whatever a stranger's file names. All that opens an ONNX file here goes through ``read_onnx``, whose result names no
file any more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srq_nni.errors import ExportError, did_you_mean
from srq_nni.speedup.lazy import import_or_explain


def is_onnx(path: str | os.PathLike[str]) -> bool:
    """Whether a path has the ending of ONNX files, in capitals or not."""
    return Path(path).suffix.lower() == ".onnx"


def read_onnx(path: str | os.PathLike[str]) -> bytes:
    """Return the content of an ONNX file, with external tensors taken in.

    Raises:
        ExportError: if the file is missing or is no ONNX file, or a tensor lies outside its folder or is cut off there.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        siblings = [file.name for file in path.parent.glob("*.onnx")] if path.parent.is_dir() else []
        raise ExportError(
            f"'{path}' cannot be read: {error.strerror}; give an ONNX file written by export_onnx"
            f"{did_you_mean(path.name, siblings)}"
        ) from None
    onnx = import_or_explain("onnx", "onnx")
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # the class is protobuf's and differs between its versions
        raise ExportError(f"'{path}' is not an ONNX file, or damaged; write it again with srq export") from error
    if not model.graph.node:
        raise ExportError(f"'{path}' is not an ONNX file, or damaged; write it again with srq export")
    external = [tensor for tensor in _tensors(model, onnx.TensorProto) if tensor.data_location]
    for tensor in external:
        tensor.raw_data = _external_bytes(tensor, path)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return bytes(model.SerializeToString()) if external else content


def _tensors(message: Any, kind: type) -> Iterator[Any]:
    """Yield every tensor in a protobuf message, wherever it stands: initializers, attributes, subgraphs, functions."""
    if isinstance(message, kind):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if hasattr(value, "__len__") else (value,):
                yield from _tensors(item, kind)


def _external_bytes(tensor: Any, path: Path) -> bytes:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = path.resolve().parent
    file = (folder / location).resolve()  # also of a symbolic link
    if not location or "\0" in location or not file.is_relative_to(folder) or file == folder:
        raise ExportError(
            f"'{path}' keeps the tensor '{tensor.name}' in {location!r}, outside its own folder; "
            "give a file whose data lie beside it, or one that holds them itself"
        )
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
        size = file.stat().st_size if file.is_file() else -1
        length = size - offset if length < 0 else length
        if not 0 <= offset <= offset + length <= size:
            raise ValueError(f"it has {max(size, 0)} bytes")
        with file.open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)
    except (OSError, ValueError) as error:
        raise ExportError(
            f"'{path}' keeps the tensor '{tensor.name}' in {location!r}, which does not hold it ({error}); "
            "put the whole data file beside it"
        ) from None
