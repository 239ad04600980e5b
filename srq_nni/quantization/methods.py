"""The registry of quantization methods: name -> what sits on activations and on weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from srq_nni.errors import QuantizationError, did_you_mean
from srq_nni.quantization.activation import ActivationQuantizer, DDTBActivation, PAMSActivation
from srq_nni.quantization.least_error import CALIBRATION
from srq_nni.quantization.percentile import PERCENTILE
from srq_nni.quantization.weight import DDTBWeight, PAMSWeight, WeightQuantizer


@dataclass(frozen=True)
class Method:
    """One published quantizer.

    Attributes:
        name: key in YAML files and config_lists.
        activation: ``activation(bits, **options)`` makes the quantizer of an activation.
        weight: ``weight(bits, **options)`` makes the quantizer of a weight.
        scheme: ``symmetric`` if the grid of every tensor is, else ``affine``, in NNI's words.
        activation_options, weight_options: allowed options with their defaults.
    """

    name: str
    activation: Callable[..., ActivationQuantizer]
    weight: Callable[..., WeightQuantizer]
    scheme: str
    activation_options: Mapping[str, Any] = field(default_factory=dict)
    weight_options: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "pams": Method(
        "pams", PAMSActivation, PAMSWeight, "symmetric", {"calibration": CALIBRATION}, {"weight_range": "learned"}
    ),
    "ddtb": Method(
        "ddtb",
        DDTBActivation,
        DDTBWeight,
        "affine",
        {
            "calibration": CALIBRATION,
            "percentile": PERCENTILE,
            "limit_levels": True,
            "gate_statistics": "per_sample",
            "gate_gradient": "straight_through",
            "gate_start": "random",
        },
        {"percentile": PERCENTILE, "limit_levels": True, "weight_range": "learned"},
    ),
}


def get_method(name: str) -> Method:
    """Return the method called ``name``.

    Raises:
        QuantizationError: for an unknown name, with the nearest right one.
    """
    if name not in METHODS:
        raise QuantizationError(
            f"quantizer: {name!r} is not known; give one of {', '.join(METHODS)}{did_you_mean(name, METHODS)}"
        )
    return METHODS[name]
