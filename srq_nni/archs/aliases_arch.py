"""Quantized networks under names of their own: ``PAMS_EDSR``, ``DDTB_RDN`` .., for BasicSR's stock models.

``network_g: {type: DDTB_EDSR, bits: 4, ...}`` with ``model_type: SRModel`` trains, resumes, validates and tests with
BasicSR's own code and option files. The block holds the arguments of the float network and, beside ``bits``, those keys
of a ``quantization`` block that describe a network (``QUANTIZATION_KEYS``). ``pretrain_network_g`` may be a float or a
quantized checkpoint, also with ``strict_load_g: true``. What this form cannot do, since SRModel has no place for it:

- SKT, the loss that compares with a float teacher.
- A learning rate of their own for the bounds: they learn with the weights, at a hundredth of the published rate, and
  so stay near their start. At few bits ``calibration: mse`` starts PAMS better.
- DDTB's gates: which layers have one is known after calibration, when SRModel's optimizer exists already. The bounds
  are static, unless the checkpoint to start from has gates, which train on as they were.
- DDTB's phase without updates: both quantizers calibrate while the weights train, on activations that are quantized.
- Metadata, where BasicSR's own ``train.py`` runs it: ``srq train`` writes into a checkpoint which network it is, and so
  ``srq export`` and ``srq_nni.load`` take it.
- Batch statistics in an average: give SRResNet ``ema_decay: 0``, since SRModel averages parameters only.

``model_type: QuantSRModel`` with a ``quantization`` block can do all of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from srq_nni.archs.quantized_arch import build_float, insert_quantizers
from srq_nni.archs.self_calibration import calibrate_itself
from srq_nni.checkpoint import BLOCKS
from srq_nni.compression.options import QuantizationOptions, options_from
from srq_nni.compression.presets import PRESETS
from srq_nni.errors import OptionError, did_you_mean
from srq_nni.quantization.methods import METHODS

QUANTIZATION_KEYS = (
    "bits",
    "wiring",
    "config_list",
    "calibration",
    "calibration_iters",
    "percentile",
    "limit_levels",
)
ALIASES: dict[str, tuple[str, str]] = {}  # name -> quantizer, name of the float network


def is_alias(network: Mapping[str, Any]) -> bool:
    """Whether a ``network_g`` block names one of these networks."""
    name = network.get("type")
    return isinstance(name, str) and name in ALIASES


def two_blocks(network: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the ``network_g`` and the ``quantization`` block that say the same for a ``QuantSRModel``.

    Args:
        network: the block of an alias.

    Raises:
        OptionError: if ``bits`` is missing or a key is not known.
    """
    name = network["type"]
    quantizer, architecture = ALIASES[name]
    given = {key: value for key, value in network.items() if key != "type"}
    arguments = tuple(inspect.signature(ARCH_REGISTRY.get(architecture)).parameters)
    for key in given:
        if key in (*arguments, *QUANTIZATION_KEYS):
            continue
        if key == "quantizer":
            raise OptionError(f"network_g: quantizer: {name} says it already; delete it")
        if key in QuantizationOptions.model_fields:
            raise OptionError(
                f"network_g: {key}: a stock model trains {name} without it; delete it, or set model_type: "
                f"QuantSRModel, type: {architecture} and give it in a quantization block"
            )
        allowed = [*arguments, *QUANTIZATION_KEYS]
        raise OptionError(
            f"network_g: key '{key}' is not known to {name}; allowed are {', '.join(allowed)}"
            f"{did_you_mean(key, allowed)}"
        )
    if given.get("bits") is None and given.get("config_list") is None:
        raise OptionError(f"network_g: key 'bits' is missing; {name} needs it, from 2 to 8, for example bits: 4")
    block = {key: value for key, value in given.items() if key in QUANTIZATION_KEYS}
    base = {key: value for key, value in given.items() if key not in QUANTIZATION_KEYS}
    return {"type": architecture, **base}, {"quantizer": quantizer, **block}


def _build(network: Mapping[str, Any]) -> nn.Module:
    base, block = two_blocks(network)
    try:
        options = options_from(block)
    except OptionError as error:
        raise OptionError(f"network_g: {str(error).removeprefix('quantization: ')}") from None
    if options.calibration_iters < 1:
        raise OptionError(f"network_g: calibration_iters: 0 leaves {network['type']} without bounds; give at least 1")
    net = insert_quantizers(build_float(base), options)
    setattr(net, BLOCKS, (base, block))
    return calibrate_itself(net, options.calibration_iters, network["type"])


def _register(quantizer: str, architecture: str) -> None:
    name = f"{quantizer.upper()}_{architecture}"

    def build(**arguments: Any) -> nn.Module:
        return _build({"type": name, **arguments})

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"Build {architecture} with the quantizers of {quantizer}; the arguments are those of both."
    ALIASES[name] = (quantizer, architecture)
    ARCH_REGISTRY.register(build)


for _quantizer in METHODS:
    for _architecture in PRESETS:
        _register(_quantizer, _architecture)
