"""Whether what a checkpoint holds fits the network and the options: keys and shapes, quantization, bounds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from srq_nni.errors import CheckpointError, listing
from srq_nni.quantization.activation import INITIAL_BOUND

COMPARED = (
    "quantizer",
    "bits",
    "wiring",
    "head",
    "tail",
    "skip",
    "config_list",
    "percentile",
    "weight_range",
    "limit_levels",
    "gate_statistics",
)
TRAINING_ONLY = (
    "calibration",
    "gate_gradient",
    "gate_start",
    "dynamic_ratio",
)  # settings of an entry that do not change what the network computes


def compare_keys(
    path: str | os.PathLike[str], expected: Mapping[str, Any], given: Mapping[str, Any], block: str = "network_g"
) -> None:
    """Check that two state dicts have the same keys and shapes; ``block`` of the options describes the network.

    Raises:
        CheckpointError: names what is missing, too much or of another shape.
    """
    missing = [key for key in expected if key not in given]
    unexpected = [key for key in given if key not in expected]
    if missing or unexpected:
        parts = [f"lacks {listing(missing, 3)}"] if missing else []
        parts += [f"has {listing(unexpected, 3)} besides"] if unexpected else []
        raise CheckpointError(
            f"checkpoint '{path}' does not fit the network: it {' and '.join(parts)}; "
            f"give a checkpoint of the architecture in {block}"
        )
    for key, value in expected.items():
        if not isinstance(given[key], torch.Tensor):
            raise CheckpointError(
                f"checkpoint '{path}' does not fit the network: {key} is a {type(given[key]).__name__} and no tensor; "
                "give a state dict"
            )
        if given[key].shape != value.shape:
            raise CheckpointError(
                f"checkpoint '{path}' does not fit the network: {key} has shape {tuple(given[key].shape)} and the "
                f"network {tuple(value.shape)}; give a checkpoint with the num_feat, num_block and upscale of {block}"
            )
        if key.endswith(".bit_width") and int(given[key]) != int(value):
            raise CheckpointError(
                f"checkpoint '{path}' does not fit the network: {key.removesuffix('.bit_width')} was saved with "
                f"{int(given[key])} bits and the network has {int(value)}; make the bits equal"
            )


def compare_quantization(path: str | os.PathLike[str], stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Compare what decides which function the network computes; lengths of phases and the like may differ.

    Args:
        path: of the checkpoint, for the message.
        stored, wanted: ``quantization`` blocks that say everything themselves (``profiles.resolve``), plain.

    Raises:
        CheckpointError: names the first key that differs.
    """
    for key in COMPARED:
        if _spelt_out(key, stored.get(key)) != _spelt_out(key, wanted.get(key)):
            raise CheckpointError(
                f"checkpoint '{path}' was made with {key}: {stored.get(key)} and the options say {key}: "
                f"{wanted.get(key)}; make them equal, or start from the float checkpoint"
            )


def _spelt_out(key: str, value: Any) -> Any:
    """Return ``value`` without what two spellings of the same network may differ in."""
    if key == "bits" and not isinstance(value, dict):
        return {"weight": value, "activation": value}
    if key == "config_list" and isinstance(value, list):
        return [{name: setting for name, setting in entry.items() if name not in TRAINING_ONLY} for entry in value]
    return value


def refuse_unset_bounds(path: str | os.PathLike[str], metadata: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Raise a CheckpointError if DDTB had not yet set its bounds from what it observes in its first iterations."""
    quantization = metadata.get("quantization", {})
    observing = metadata.get("phase") == "observe"
    if "phase" not in metadata and quantization.get("calibration") != "official":
        bounds = [value for key, value in state.items() if key.endswith(("_quantizer.upper", "_quantizer.lower"))]
        seen = [value for key, value in state.items() if key.endswith("_quantizer.intensity.count")]
        at_start = all(bool((bound.abs() == INITIAL_BOUND).all()) for bound in bounds)
        observing = at_start and any(bool(count > 0) for count in seen)
    if observing:
        iterations = quantization.get("calibration_iters", "calibration_iters")
        raise CheckpointError(
            f"checkpoint '{path}' was saved while DDTB still observed float activations, so its bounds are not set; "
            f"give one that was saved after iteration {iterations}"
        )
