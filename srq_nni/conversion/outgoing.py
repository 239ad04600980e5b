"""Checkpoints of srq-nni and BasicSR into those of EDSR-PyTorch, PAMS and DDTB, which their code loads strictly."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srq_nni import checkpoint
from srq_nni.checkpoint_fit import compare_keys
from srq_nni.compression.presets import PRESETS
from srq_nni.compression.profiles import SWITCHES, resolve
from srq_nni.conversion.layout import Layout, same
from srq_nni.conversion.naming import Naming, to_lowercase
from srq_nni.conversion.network import Given, infer, with_defaults
from srq_nni.conversion.official import CARRIED_KEY, STARTS, check_source
from srq_nni.conversion.report import RECORD_KEY, Conversion, check_output
from srq_nni.conversion.tensors import State
from srq_nni.errors import CheckpointError, listing

CHANGING = {  # switches that change what a trained network computes -> how the released code differs
    "limit_levels": "the released code has up to 2^k + 1 levels",
    "weight_range": "the released code takes the step of the largest weight, or of percentiles",
    "gate_statistics": "in the released code the gate of an image depends on the others in its batch",
}


def convert_back(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    target: str,
    *,
    img_range: float | None = None,
    rgb_mean: Sequence[float] | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Convert a checkpoint into one that the released code loads, and write it.

    Of averaged and plain weights the averaged ones are taken, as ``srq_nni.load`` does.

    Args:
        path: a float checkpoint of BasicSR, or a student of srq-nni in the wiring ``official``.
        output: file to write, all at once.
        target: ``edsr-pytorch``, ``pams`` or ``ddtb``.
        img_range, rgb_mean: of a float EDSR, whose BasicSR file does not say them; not of a file that was converted.
        overwrite: replace ``output``.

    Returns:
        What was written.

    Raises:
        CheckpointError: if the released code has no such network.
        OptionError: if an option is missing or not allowed.
    """
    check_source(target)
    place = check_output(path, output, overwrite=overwrite)
    path = Path(path).expanduser()
    content = checkpoint.read(path)
    record = _record(path, content)
    if checkpoint.METADATA_KEY in content:
        layout, ours, notes = _student(path, content[checkpoint.METADATA_KEY], target)
    else:
        layout, ours, notes = _float(path, content, target, record, Given(img_range=img_range, rgb_mean=rgb_mean))
    made = layout.to_official(ours)
    official = dict(made)
    flat = layout.method is None
    if record is not None:
        official |= record["rest"]
        official = {key: value for key, value in official.items() if key not in record["absent"]}
        flat = not record["wrapped"]
        if record["style"] == "lowercase":
            official = to_lowercase(official)
    official = {key: value.detach().clone() for key, value in official.items()}
    written: dict[str, Any] = official if flat else {"state_dict": official}
    if layout.method is not None and not flat:
        metadata = content[checkpoint.METADATA_KEY]
        again = layout.to_ours(made)
        rest = {key: value.detach().clone() for key, value in ours.items() if not same(again.get(key), value)}
        written[CARRIED_KEY] = {"metadata": checkpoint.plain(metadata), "rest": rest}
    checkpoint.save(written, place)
    kind = "float network" if layout.method is None else f"{layout.method.upper()} student"
    description = f"{layout.arch}, {kind}, {len(official)} tensors for {target}"
    return Conversion(place, description, notes=notes)


def _record(path: Path, content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what ``convert`` noted in the file."""
    record = content.get(RECORD_KEY)
    if record is None:
        return None
    kinds = {"network": Mapping, "style": str, "wrapped": bool, "rest": Mapping, "absent": list}
    if not isinstance(record, Mapping) or not all(isinstance(record.get(key), kind) for key, kind in kinds.items()):
        raise CheckpointError(f"checkpoint '{path}' has a damaged entry '{RECORD_KEY}'; delete it")
    return dict(record)


def _student(path: Path, metadata: Mapping[str, Any], target: str) -> tuple[Layout, State, list[str]]:
    """Return the layout and the tensors of a trained student, and what the released code will compute differently."""
    arch = metadata["network"].get("type")
    if arch not in STARTS:
        raise CheckpointError(
            f"checkpoint '{path}' is a quantized {arch}; the released code has {', '.join(STARTS)} only"
        )
    block = resolve(metadata["quantization"], arch)
    if block["quantizer"] != target:
        raise CheckpointError(
            f"checkpoint '{path}' is a {block['quantizer'].upper()} student; use --to {block['quantizer']}"
        )
    preset = PRESETS[arch]
    for key in ("config_list", "head", "tail", "skip"):
        if block.get(key) is not None:
            raise CheckpointError(
                f"checkpoint '{path}' has {key}: {block[key]}, which the released code has no place for"
            )
    if preset.wirings[block["wiring"]] != preset.wirings["official"]:
        raise CheckpointError(
            f"checkpoint '{path}' has the wiring '{block['wiring']}' and the released code computes another network; "
            "train with wiring: official to convert it"
        )
    bits = block["bits"]
    if isinstance(bits, Mapping):
        if len(set(bits.values())) > 1:
            raise CheckpointError(
                f"checkpoint '{path}' has bits: {dict(bits)} and the released code one number for both"
            )
        bits = bits["weight"]
    percentile = block.get("percentile")
    if target == "ddtb" and percentile not in (None, preset.weight_percentile):
        raise CheckpointError(
            f"checkpoint '{path}' has percentile: {percentile} and the released code quantizes the weights of {arch} "
            f"with {preset.weight_percentile:g}; train with that to convert it"
        )
    notes = [
        f"{key}: {block[key]} computes something else than the released code may: {difference}"
        for key, difference in CHANGING.items()
        if block.get(key) not in (None, *(getattr(SWITCHES[key], target) or ())[1:])
    ]
    ours = checkpoint.load(path).state_dict()
    waiting = [key for key, value in ours.items() if key.endswith(".gate_is_applied") and not value]
    gated = [key for key in ours if key.endswith(".gate.reduce.weight")]
    if gated and len(waiting) == sum(key.endswith(".gate_is_applied") for key in ours):
        notes.append(f"the {len(gated)} gates were not applied yet, so no layer is dynamic in the file")
    return Layout(with_defaults(metadata["network"]), {**block, "bits": bits}, 3), ours, notes


def _float(
    path: Path, content: Mapping[str, Any], target: str, record: Mapping[str, Any] | None, given: Given
) -> tuple[Layout, State, list[str]]:
    """Return the layout and the tensors of a float network."""
    ours = checkpoint.state_dict_of(content, path, "params_ema")
    ours.pop(RECORD_KEY, None)
    if any(checkpoint.is_quantizer_key(key) for key in ours):
        raise CheckpointError(
            f"checkpoint '{path}' is quantized and does not say its network; train it with model_type QuantSRModel to "
            "convert it"
        )
    arch = _architecture(path, ours)
    if arch == "SRResNet" and target == "edsr-pytorch":
        raise CheckpointError(f"checkpoint '{path}' is an SRResNet, which EDSR-PyTorch does not have; use --to ddtb")
    if record is not None:
        network, student = dict(record["network"]), record["style"] == "student"
    else:
        blocks = 1 + max((int(key.split(".")[1]) for key in ours if key.startswith("body.")), default=0)
        names = Naming(arch, 2, blocks)
        network = infer(path, arch, {names.parameter(key): value for key, value in ours.items()}, given).network
        student = False
    layout = Layout(network, None, 3 if student else 2)
    compare_keys(path, dict(layout.parameters.values()), ours)
    return layout, ours, []


def _architecture(path: Path, ours: State) -> str:
    names = {"conv_after_body.weight": "EDSR", "SFENet1.weight": "RDN", "conv_input.weight": "SRResNet"}
    found = [arch for key, arch in names.items() if key in ours]
    if not found:
        raise CheckpointError(
            f"checkpoint '{path}' is no EDSR, RDN or SRResNet, for its keys are {listing(ours, 3)}; only those have a "
            "place in the released code"
        )
    return found[0]
