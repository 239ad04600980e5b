"""Checkpoints of EDSR-PyTorch, PAMS and DDTB into those of BasicSR and srq-nni, every key accounted for.

A float network becomes a plain BasicSR file, a student a checkpoint that ``srq_nni.load`` builds with the wiring and
all switches of the released code. What our side has no place for (second names of a tensor, quantizers that never run,
gates of layers that are not dynamic) is kept in an entry ``conversion`` beside the weights, so that a file that was
converted and not trained goes back as it was, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import QuantizedNetwork
from srq_nni.conversion.layout import Layout, same
from srq_nni.conversion.naming import from_lowercase
from srq_nni.conversion.network import Given, Inference, infer, with_defaults
from srq_nni.conversion.official import OfficialFile, check_fits_source, check_source, read_official
from srq_nni.conversion.probe import settle_range
from srq_nni.conversion.report import RECORD_KEY, Conversion, check_output
from srq_nni.conversion.tensors import State
from srq_nni.errors import CheckpointError, OptionError, listing
from srq_nni.quantization.grid import check_bits
from srq_nni.quantization.layers import add_stored_gates


def convert(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    source: str,
    *,
    bits: int | None = None,
    res_scale: float | None = None,
    img_range: float | None = None,
    rgb_mean: Sequence[float] | None = None,
    body_only: bool = False,
    overwrite: bool = False,
) -> Conversion:
    """Convert a checkpoint of the released code and write it.

    The network is read from keys and shapes; a converted student computes what the released code computes when it
    tests, its dynamic gates applied.

    Args:
        path: their checkpoint: a state dict, or one under ``state_dict``.
        output: file to write, all at once.
        source: ``edsr-pytorch``, ``pams`` or ``ddtb``.
        bits: of a student, 2 to 8; its checkpoint does not say it.
        res_scale: factor of EDSR's residual branches, if it is not that of the published network of this size.
        img_range: 255 for networks of images in [0, 255] (all three projects), 1 for [0, 1]; where the file does not
            tell and it is not given, a float network is tried with both.
        rgb_mean: mean that EDSR subtracts, in [0, 1], for a file without ``sub_mean``.
        body_only: leave out the tail (``UPNet``) of an RDN that has one of its own.
        overwrite: replace ``output``.

    Returns:
        What was written.

    Raises:
        CheckpointError: if the file is no such checkpoint, or a key or shape does not fit; nothing is written then.
        OptionError: if an option is missing or contradicts the file.
    """
    source = check_source(source)
    target = check_output(path, output, overwrite=overwrite)
    file = read_official(path)
    check_fits_source(file, source)
    given = Given(res_scale, img_range, rgb_mean, body_only)
    state = from_lowercase(file.state) if file.style == "lowercase" else file.state
    found, quantization = _describe(file, state, bits, given)
    layout = Layout(found.network, quantization, 3 if file.style == "student" else 2)
    left_out = [key for key in state if body_only and key.startswith("UPNet.")]
    if body_only:
        state = {key: value for key, value in state.items() if key not in left_out}
        layout.leave_out("UPNet.")
    ours = layout.to_ours(layout.complete(file.path, state))
    if file.carried is not None:
        ours |= file.carried["rest"]
    ours = {key: value.clone() for key, value in ours.items()}  # one name of two of a tensor keeps its storage
    if quantization is None and not found.range_is_sure:
        settle_range(file.path, found, ours)
    content: dict[str, Any] = {"params": ours}
    if quantization is not None:
        _try(file, found.network, quantization, ours)
        content[checkpoint.METADATA_KEY] = _metadata(file, found.network, quantization)
    content[RECORD_KEY] = _record(file, source, layout, state, ours)
    checkpoint.save(content, target)
    if left_out:
        found.notes.append(
            f"left out is the tail: {listing(left_out)}; start a float SRModel from this file with strict_load_g: "
            "false and train a tail"
        )
    description = f"{file.description}, {len(state)} tensors from {source}"
    return Conversion(target, description, found.network, quantization, found.notes)


def _describe(
    file: OfficialFile, state: State, bits: int | None, given: Given
) -> tuple[Inference, dict[str, Any] | None]:
    """Return the network, and the ``quantization`` block of a student."""
    if file.carried is not None:
        metadata = file.carried["metadata"]
        stored = metadata["quantization"]
        if bits is not None and bits != stored.get("bits"):
            raise OptionError(
                f"bits: {bits} contradicts checkpoint '{file.path}', which was made with {stored.get('bits')}; "
                "leave it out"
            )
        return Inference(with_defaults(metadata["network"]), range_is_sure=True), dict(stored)
    if file.method is None:
        if bits is not None:
            raise OptionError(f"bits: checkpoint '{file.path}' is a float network; leave it out")
        return infer(file.path, file.arch, state, given), None
    if given.body_only:
        raise OptionError(f"body_only: checkpoint '{file.path}' is a student, whose tail is RDN's; leave it out")
    if bits is None:
        raise OptionError(
            f"bits: checkpoint '{file.path}' is a {file.method.upper()} student, which does not say its bits; give "
            "--bits with the k_bits of its training"
        )
    block = {"quantizer": file.method, "bits": check_bits(bits), "profile": "official"}
    if file.method == "pams":
        block["student"] = "float"  # who trains on wants the weights of this file, not the released random start
    return infer(file.path, file.arch, state, given), block


def _metadata(file: OfficialFile, network: Mapping[str, Any], quantization: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a student; what went out of our format comes back as it was."""
    stored = {} if file.carried is None else file.carried["metadata"]
    return checkpoint.metadata_of(stored.get("network", network), quantization, phase=stored.get("phase"))


def _record(file: OfficialFile, source: str, layout: Layout, state: State, ours: State) -> dict[str, Any]:
    """Return what ``convert_back`` needs to make the same file again."""
    back = layout.to_official(ours)
    record = {"from": source, "network": layout.network, "style": file.style, "wrapped": file.wrapped}
    rest = {key: value.clone() for key, value in state.items() if not same(back.get(key), value)}
    return {**checkpoint.plain(record), "rest": rest, "absent": [key for key in back if key not in state]}


def _try(file: OfficialFile, network: Mapping[str, Any], quantization: Mapping[str, Any], ours: State) -> None:
    """Build the student and load it, so that no file is written that ``srq_nni.load`` refuses."""
    model = QuantizedNetwork(network, quantization)
    add_stored_gates(model, ours)
    try:
        model.load_state_dict(ours)
    except RuntimeError as error:
        raise CheckpointError(
            f"checkpoint '{file.path}' does not fit the network: {str(error).splitlines()[-1].strip()}; "
            "give an unchanged checkpoint"
        ) from None
