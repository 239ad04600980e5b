"""Checkpoints of EDSR-PyTorch, PAMS and DDTB: reading them, and telling what they are from keys alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from srq_nni import checkpoint
from srq_nni.conversion.tensors import MARKS, State
from srq_nni.errors import CheckpointError, OptionError, did_you_mean, listing

SOURCES = ("edsr-pytorch", "pams", "ddtb")
CARRIED_KEY = "srq_nni"  # beside state_dict: what the way back to srq-nni needs and the released code has no place for
PREFIXES = ("module.model.", "module.", "model.")
STARTS = {
    "EDSR": ("head.", "tail.", "sub_mean.", "add_mean."),
    "RDN": ("SFENet", "RDBs.", "GFF.", "UPNet.", "sfe1.", "sfe2.", "rdbs.", "gff."),
    "SRResNet": ("conv_input.", "residual.", "conv_mid.", "bn_mid."),
}
BASICSR_STARTS = ("conv_first.", "conv_after_body.", "conv_hr.", "upconv1.")


@dataclass(frozen=True)
class OfficialFile:
    """A file and what its keys say.

    Attributes:
        path: where it was read.
        state: the tensors, without the prefix of nn.DataParallel.
        wrapped: they stood below ``state_dict``, beside an optimizer and the like.
        carried: the entry of ``CARRIED_KEY``, if srq-nni wrote the file.
        arch: EDSR, RDN or SRResNet.
        method: pams or ddtb for a student, None for a float network (a teacher).
        style: see ``naming.STYLES``.
    """

    path: Path
    state: State
    wrapped: bool
    carried: Mapping[str, Any] | None
    arch: str
    method: str | None
    style: str

    @property
    def description(self) -> str:
        """What it is, in words."""
        kind = "float network" if self.method is None else f"{self.method.upper()} student"
        return f"{self.arch}, {kind}"


def check_source(source: str) -> str:
    """Return ``source`` if it is one of ``SOURCES``; raise an OptionError otherwise."""
    if source not in SOURCES:
        raise OptionError(
            f"format {source!r} is not known; give one of {', '.join(SOURCES)}{did_you_mean(source, SOURCES)}"
        )
    return source


def read_official(path: str | os.PathLike[str]) -> OfficialFile:
    """Read a checkpoint of one of the three projects, as tensors only, and recognise it.

    Raises:
        CheckpointError: if it cannot be read, is none of theirs, or holds something other than tensors.
    """
    path = Path(path).expanduser()
    content = checkpoint.read(path)
    if checkpoint.METADATA_KEY in content:
        raise CheckpointError(
            f"checkpoint '{path}' was written by srq-nni; use it as it is, or give the format to convert it back to"
        )
    state, wrapped = _tensors(path, content)
    arch = _architecture(path, state)
    method = _method(state)
    carried = _carried(path, content) if method is not None else None
    return OfficialFile(path, state, wrapped, carried, arch, method, _style(arch, state))


def check_fits_source(file: OfficialFile, source: str) -> None:
    """Raise a CheckpointError that names the right source, if ``file`` is not what ``source`` writes."""
    if file.method is None and not (file.arch == "SRResNet" and source == "edsr-pytorch"):
        return
    if file.method == source:
        return
    right = file.method or "ddtb"
    what = f"a {right.upper()} student" if file.method else "DDTB's SRResNet"
    raise CheckpointError(f"checkpoint '{file.path}' looks like {what}; use --from {right}")


def _carried(path: Path, content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the entry that srq-nni left in the file for itself."""
    carried = content.get(CARRIED_KEY)
    if carried is None:
        return None
    metadata, rest = (carried.get(key) if isinstance(carried, Mapping) else None for key in ("metadata", "rest"))
    if not (isinstance(rest, Mapping) and isinstance(metadata, Mapping)) or not all(
        isinstance(metadata.get(key), Mapping) for key in ("network", "quantization")
    ):
        raise CheckpointError(f"checkpoint '{path}' has a damaged entry '{CARRIED_KEY}'; delete it and give --bits")
    return {"metadata": metadata, "rest": dict(rest)}


def _tensors(path: Path, content: Mapping[str, Any]) -> tuple[State, bool]:
    wrapped = isinstance(content.get("state_dict"), Mapping)
    if not wrapped and isinstance(content.get("params"), Mapping):
        raise CheckpointError(
            f"checkpoint '{path}' has its weights under 'params', so BasicSR wrote it; use it as it is, or give the "
            "format to convert it to"
        )
    given = dict(content["state_dict"]) if wrapped else {k: v for k, v in content.items() if k != CARRIED_KEY}
    strange = [key for key, value in given.items() if not isinstance(value, torch.Tensor)]
    if strange or not given:
        kinds = f"{strange[0]} is a {type(given[strange[0]]).__name__}" if strange else "it is empty"
        raise CheckpointError(
            f"checkpoint '{path}' holds no state dict ({kinds}); give a flat one, or one under 'state_dict'"
        )
    prefix = next((p for p in PREFIXES if all(str(key).startswith(p) for key in given)), "")
    return {str(key).removeprefix(prefix): value.detach() for key, value in given.items()}, wrapped


def _architecture(path: Path, state: State) -> str:
    counts = {arch: sum(key.startswith(starts) for key in state) for arch, starts in STARTS.items()}
    best = max(counts, key=lambda arch: counts[arch])
    if any(key.startswith(BASICSR_STARTS) for key in state):
        raise CheckpointError(
            f"checkpoint '{path}' has BasicSR's names already ({next(iter(state))}); use it as it is, with "
            "param_key_g: ~ since it is flat"
        )
    if counts[best] == 0:
        raise CheckpointError(
            f"checkpoint '{path}' is no EDSR, RDN or SRResNet of these projects, for its keys are "
            f"{listing(state, 3)}; give one whose keys start with head., RDBs. or residual."
        )
    return best


def _method(state: State) -> str | None:
    fields = {key.rpartition(".")[2] for key in state}
    return next((method for method in ("ddtb", "pams") if fields & set(MARKS[method])), None)


def _style(arch: str, state: State) -> str:
    if arch == "EDSR":
        return "student" if any(key.endswith(".body.3.weight") for key in state) else "teacher"
    return "lowercase" if arch == "RDN" and any(key.startswith(("sfe1.", "rdbs.")) for key in state) else "teacher"
