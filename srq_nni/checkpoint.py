"""Checkpoints that say what they are, and the strict loading of float and quantized weights.

A file is ``{"params": .., "params_ema": .., "srq": metadata}``: BasicSR reads the first two as ever, the third makes
the file enough to rebuild the network. Files are read with ``weights_only`` and written atomically.
"""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from srq_nni.atomic import atomic_file, write_error
from srq_nni.checkpoint_fit import compare_keys, compare_quantization, refuse_unset_bounds
from srq_nni.compression.profiles import as_written_before, resolve
from srq_nni.errors import CheckpointError, did_you_mean, listing
from srq_nni.quantization.layers import add_stored_gates
from srq_nni.quantization.targets import is_quantizer_name

FORMAT_VERSION = 1
METADATA_KEY = "srq"
BLOCKS = "srq_blocks"  # attribute of a network: the blocks network_g and quantization it was built from
OTHER_FILES = {".onnx": "it is an ONNX file", ".yml": "it is an option file", ".yaml": "it is an option file"}


def metadata_of(
    network: Mapping[str, Any], quantization: Mapping[str, Any], *, phase: str | None = None
) -> dict[str, Any]:
    """Return the metadata of a checkpoint: format version, ``network_g`` block and ``quantization`` block.

    Profile and defaults of the quantization are written out, so that a later change of them leaves the file what it is.

    Args:
        network, quantization: the two blocks.
        phase: of training (``phases.Phase``), if the network was saved in the middle of it.
    """
    resolved = resolve(quantization, network.get("type"))
    metadata = {"format": FORMAT_VERSION, "network": plain(network), "quantization": plain(resolved)}
    return metadata if phase is None else {**metadata, "phase": phase}


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the dictionary stored in ``path``, on the CPU.

    Raises:
        CheckpointError: if the file is missing, is not a checkpoint, or has a newer format.
    """
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        raise CheckpointError(f"checkpoint '{path}' is a folder; give the path of a .pth file in it")
    if not path.is_file():
        siblings = [item.name for item in path.parent.glob("*.pt*")] if path.parent.is_dir() else []
        near = did_you_mean(path.name, siblings)
        raise CheckpointError(f"checkpoint '{path}' does not exist; give the path of a .pth file{near}")
    if packed_file(path):
        raise CheckpointError(
            f"checkpoint '{path}' is a packed file, which holds what inference needs; "
            "give the .pth file it was packed from here"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # what a damaged file makes torch.load raise
        reason = "it is damaged, no file of torch.save, or holds more than tensors"
        if isinstance(error, OSError | RuntimeError) and str(error).strip():
            reason = str(error).strip().splitlines()[0]  # other errors name a byte, or how to run the file's code
        if (
            "PytorchStreamReader" in reason or getattr(error, "errno", None) == errno.EINVAL
        ):  # what an archive's end says
            reason = "it is cut off or damaged; copy it again, or take an earlier one of the run"
        reason = OTHER_FILES.get(path.suffix.lower(), reason)
        raise CheckpointError(
            f"checkpoint '{path}' cannot be read ({reason[:120]}); give a file of tensors written by torch.save"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint '{path}' holds a {type(content).__name__}; give a file with a state dict")
    metadata = content.get(METADATA_KEY, {"format": FORMAT_VERSION, "network": {}, "quantization": {}})
    kinds = {"format": int, "network": dict, "quantization": dict}
    if not isinstance(metadata, dict) or not all(isinstance(metadata.get(key), kind) for key, kind in kinds.items()):
        raise CheckpointError(f"checkpoint '{path}' has damaged metadata; give a file as it was written by srq-nni")
    version = metadata["format"]
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint '{path}' has format {version} and this version reads up to {FORMAT_VERSION}; update srq-nni"
        )
    if METADATA_KEY in content:
        content[METADATA_KEY] = {**metadata, "quantization": as_written_before(metadata["quantization"])}
    return content


def blocks_of(network: nn.Module) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the blocks ``network_g`` and ``quantization`` that a network was built from, None where it is unknown."""
    return getattr(network, BLOCKS, None)


def packed_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins like safetensors, as packed files do: the length of a JSON text, then its brace."""
    try:
        with Path(path).expanduser().open("rb") as file:
            start = file.read(9)
    except OSError:
        return False
    return len(start) == 9 and start[8:] == b"{"


def state_dict_of(content: Mapping[str, Any], path: str | os.PathLike[str], param_key: str | None) -> dict[str, Any]:
    """Return the state dict below ``param_key`` (``params_ema`` falls back to ``params``, a flat file is itself).

    That of a network which a stock model trains has lost what tells of its calibration.
    """
    from srq_nni.archs.self_calibration import without_calibration

    if param_key is not None and "params" not in content and "params_ema" not in content:
        param_key = None
    if param_key == "params_ema" and param_key not in content:
        param_key = "params"
    if param_key is not None and param_key not in content:
        keys = [key for key in content if key != METADATA_KEY]
        raise CheckpointError(f"checkpoint '{path}' has no '{param_key}'; allowed are {listing(keys)}")
    state = content if param_key is None else content[param_key]
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f"checkpoint '{path}': '{param_key}' is a {type(state).__name__}; give a state dict there"
        )
    named = {str(key).removeprefix("module."): value for key, value in state.items() if key != METADATA_KEY}
    return without_calibration(named, path)


def is_quantizer_key(key: str) -> bool:
    """Whether a state-dict key belongs to a quantizer and not to the float network."""
    return any(is_quantizer_name(part) for part in key.split("."))


def load_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    param_key: str | None = "params",
    quantization: Mapping[str, Any] | None = None,
    to_use: bool = False,
    block: str = "network_g",
) -> bool:
    """Load a float or a quantized checkpoint into ``model``, accounting for every key.

    A float file must hold exactly the network's float parameters; the quantizers keep their start. A quantized file
    must hold everything, and must have been made with the same quantizer, bits and wiring.

    Args:
        model: the network, with or without quantizers.
        path: checkpoint file.
        param_key: ``params`` or ``params_ema``.
        quantization: the ``quantization`` block of ``model``, compared with the file's.
        to_use: the network is not trained further, so its bounds must have been set.
        block: of the options that describes ``model``, for messages.

    Returns:
        Whether the file was a quantized checkpoint.

    Raises:
        CheckpointError: if anything does not fit; ``model`` is unchanged then.
    """
    content = read(path)
    state = state_dict_of(content, path, param_key)
    quantized = METADATA_KEY in content or any(is_quantizer_key(key) for key in state)
    if quantized and quantization is None and not any(is_quantizer_key(key) for key in model.state_dict()):
        raise CheckpointError(f"checkpoint '{path}' is quantized; give a float checkpoint here")
    if METADATA_KEY in content and quantization is not None:  # a file of a stock model does not say; its tensors do
        stored = content[METADATA_KEY].get("quantization", {})
        compare_quantization(path, *(plain(resolve(given)) for given in (stored, quantization)))
    if to_use and quantized:
        refuse_unset_bounds(path, content.get(METADATA_KEY, {}), state)
    added = add_stored_gates(model, state)
    own = model.state_dict()
    expected = own if quantized else {key: value for key, value in own.items() if not is_quantizer_key(key)}
    try:
        compare_keys(path, expected, state, block)
        model.load_state_dict({**own, **state})
    except (CheckpointError, RuntimeError) as error:
        for quantizer in added:
            quantizer.gate = None
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"checkpoint '{path}' does not fit the network: {str(error).splitlines()[-1].strip()}"
        ) from None
    return quantized


def load(path: str | os.PathLike[str]) -> nn.Module:
    """Return the quantized network of a checkpoint or a packed file, as it was trained, in eval mode on the CPU.

    Averaged weights (``params_ema``) are taken where the file has them.

    Raises:
        CheckpointError: if the file is missing or broken, or was not written by srq-nni.
    """
    from srq_nni.archs.quantized_arch import QuantizedNetwork

    if packed_file(path):
        from srq_nni import packed

        return packed.load(path)
    content = read(path)
    if METADATA_KEY not in content:
        raise CheckpointError(
            f"checkpoint '{path}' does not say which network it is; give a quantized one that srq train wrote"
        )
    metadata = content[METADATA_KEY]
    model = QuantizedNetwork(metadata["network"], metadata["quantization"])
    load_weights(model, path, param_key="params_ema", quantization=metadata["quantization"], to_use=True)
    return model.eval()


def save(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a dictionary with ``torch.save``; a crash or a full disk leaves the old file as it was.

    Raises:
        WriteError: if the disk refuses the file or its folder.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from None
    with atomic_file(path) as file:
        torch.save(content, file)


def plain(value: Any) -> Any:
    """Return ``value`` as dicts, lists and scalars only, so that ``weights_only`` reads it back."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
