"""config_lists, NNI's own format, that put a published quantizer on a known architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from srq_nni.compression.options import Bits, QuantizationOptions, bits_of, options_from
from srq_nni.compression.presets import BOTH, Preset, find_preset
from srq_nni.compression.profiles import SWITCHES, default_of, range_key
from srq_nni.errors import OptionError
from srq_nni.quantization.grid import MAX_BITS
from srq_nni.quantization.methods import METHODS
from srq_nni.quantization.percentile import implied_by
from srq_nni.quantization.targets import INPUT, WEIGHT

ENTRY_OPTIONS = ("profile", "head", "tail", "skip", "dynamic_ratio", *(k for k, s in SWITCHES.items() if s.per_tensor))
BELONGS = {
    "student": "load the weights before, or give it in the quantization block",
    "feature": "give it to skt_config_list, or in the quantization block",
}


def config_list(
    arch_or_model: str | nn.Module,
    method: str,
    bits: int | Mapping[str, int],
    wiring: str | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Return the config_list, in NNI's format, that puts a published quantizer on a known architecture.

    Args:
        arch_or_model: an architecture name (``EDSR``, ``RDN``, ``SRResNet``, ``MSRResNet``) or such a network.
        method: ``pams`` or ``ddtb``.
        bits: 2 to 8 for all tensors, or ``{"weight": .., "activation": ..}``.
        wiring: ``paper`` (the default), ``deploy``, ``tensorrt`` or ``official`` (the default with
            ``profile="official"``).
        options: ``head``, ``tail``, ``skip``, ``profile``, ``calibration``, ``percentile``, ``limit_levels``,
            ``weight_range``, ``dynamic_ratio``, ``gate_statistics``, ``gate_gradient`` and ``gate_start``, as in the
            ``quantization`` block.

    Raises:
        OptionError: for an unknown architecture, method, wiring, option or bit width, and for an option that says
            nothing about a tensor, such as the length of a phase.
    """
    block = {"quantizer": method, "bits": dict(bits) if isinstance(bits, Mapping) else bits}
    placed = {} if wiring is None else {"wiring": wiring}
    checked = options_from({**block, **placed, **options})
    for key in options:
        if key not in ENTRY_OPTIONS:
            raise OptionError(f"{key}: it has no effect in a config_list; {BELONGS.get(key, _to_quantizer(method))}")
    return preset_config_list(arch_or_model, checked)


def _to_quantizer(method: str) -> str:
    return f"give it to {method.upper()}Quantizer, or in the quantization block"


def preset_config_list(arch_or_model: str | nn.Module, options: QuantizationOptions) -> list[dict[str, Any]]:
    """Return the entries of a preset with all that ``options`` says about tensors, for use without the block itself."""
    entries = sites_config_list(arch_or_model, options)
    if options.dynamic_ratio is not None:
        _write_gate_share(entries, options.dynamic_ratio)
    return entries


def _write_gate_share(entries: Sequence[Mapping[str, Any]], share: float) -> None:
    """Let activations say which share of them gets a gate; 8 bits get none beside fewer, as if the block said it."""
    targets = [item for entry in entries for item in entry["target_settings"].items()]
    activations = [settings for target, settings in targets if target != WEIGHT]
    narrow = [settings for settings in activations if settings["quant_dtype"] != f"int{MAX_BITS}"]
    for settings in narrow or activations:
        settings["dynamic_ratio"] = share


def sites_config_list(arch_or_model: str | nn.Module, options: QuantizationOptions) -> list[dict[str, Any]]:
    """Return the config_list of ``options``: the user's own, or the preset's for this architecture."""
    if options.config_list is not None:
        return options.config_list
    preset = find_preset(arch_or_model)
    body = _body_entries(options, preset)
    ends = [(options.head, preset.head), (options.tail, preset.tail)]
    return body + [_entry(options, preset, list(end), BOTH, bits) for bits, end in ends if bits is not None]


def _body_entries(options: QuantizationOptions, preset: Preset) -> list[dict[str, Any]]:
    """Return the entries of the wiring, skips at bits of their own where the options give them.

    A convolution that reads a skip's quantizer then gets one of its own behind it.
    """
    wiring = preset.wirings[options.wiring]
    if options.skip is not None and not any(pattern in preset.skips for pattern, _ in wiring):
        raise OptionError(
            f"skip: {options.skip} has no effect, since wiring {options.wiring} of this network leaves its skips in "
            "floating point; delete it, or set wiring: deploy"
        )
    apart = preset.skips if options.skip not in (None, options.bits_of(INPUT)) else {}
    entries = []
    for pattern, targets in wiring:
        entries.append(_entry(options, preset, [pattern], targets, options.skip if pattern in apart else None))
        if apart.get(pattern):
            entries.append(_entry(options, preset, [apart[pattern]], [INPUT]))
    return entries


def _entry(
    options: QuantizationOptions,
    preset: Preset,
    patterns: list[str],
    targets: Sequence[str],
    bits: int | Bits | None = None,
) -> dict[str, Any]:
    """Return one entry; ``bits`` of its tensors where they are not those of the body."""
    method = METHODS[options.quantizer]
    width = options.bits_of if bits is None else partial(bits_of, bits)
    settings = {}
    for target in targets:
        allowed = method.weight_options if target == WEIGHT else method.activation_options
        published = preset.weight_percentile if target == WEIGHT else preset.percentile
        given = {key: getattr(options, key) for key, switch in SWITCHES.items() if switch.per_tensor and key in allowed}
        how = range_key(target)
        given[how] = given[how] or implied_by(options.percentile, default_of(how, method.name))
        reads = "percentile" in allowed and given[how] in ("percentile", "official")
        given["percentile"] = (options.percentile or published) if reads else None
        chosen = {key: value for key, value in given.items() if value not in (None, default_of(key, method.name))}
        settings[target] = {"quant_dtype": f"int{width(target)}", **chosen}
    return {
        "op_names_re": patterns,
        "target_names": list(targets),
        "quant_dtype": f"int{width(INPUT)}",
        "target_settings": settings,
    }
