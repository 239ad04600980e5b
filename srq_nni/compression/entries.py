"""A config_list as a user of NNI writes it, and the same spelt out for NNI's own machinery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from schema import Optional, Schema, SchemaError
from torch import nn

from srq_nni.compression.config import sites_config_list
from srq_nni.compression.options import QuantizationOptions, options_from
from srq_nni.compression.presets import PRESETS, WIRINGS
from srq_nni.compression.sites import Site
from srq_nni.errors import OptionError, did_you_mean, listing
from srq_nni.quantization.methods import get_method
from srq_nni.quantization.targets import OUTPUT

DYNAMIC_RATIO = 0.3  # of EDSR, for a network without a preset
PRESET_KEYS = ("head", "tail", "skip", "calibration", "percentile", "weight_range")
WIRING_KEYS = ("wiring", "quant_dtype", *PRESET_KEYS, "dynamic_ratio")


def expand_entries(
    model: nn.Module, entries: Sequence[Mapping[str, Any]], method: str, profile: str = "default"
) -> list[dict[str, Any]]:
    """Return a config_list whose ``wiring`` entries are replaced by the entries of the network's preset.

    Args:
        model: the network.
        entries: the config_list.
        method: ``pams`` or ``ddtb``.
        profile: of the preset's settings, see ``profiles``; the wiring stays the one that is named.

    Raises:
        OptionError: if a setting of ours has a value that its schema does not allow; the message names the entry.
    """
    expanded: list[dict[str, Any]] = []
    for index, entry in enumerate(entries):
        where = f"config_list entry {index}"
        for block in (entry, *(entry.get("target_settings") or {}).values()):
            if isinstance(block, Mapping):
                _check_settings(block, method, where)
        expanded.extend(_preset_entries(model, entry, method, profile, where) if "wiring" in entry else [dict(entry)])
    return expanded


def _check_settings(block: Mapping[str, Any], method: str, where: str) -> None:
    calibrations = getattr(get_method(method).activation, "CALIBRATIONS", ())
    ranges = getattr(get_method(method).weight, "RANGES", ())
    rules: dict[str, tuple[Any, str]] = {
        "calibration": (lambda given: given in calibrations, f"give one of {', '.join(calibrations)}"),
        "percentile": (lambda given: _is_number(given) and 50 < given <= 100, "give a number above 50, at most 100"),
        "weight_range": (lambda given: given in ranges, f"give one of {', '.join(ranges)}"),
        "limit_levels": (bool, "give True or False"),
        "dynamic_ratio": (lambda given: _is_number(given) and 0 <= given <= 1, "give a share from 0 to 1"),
        "wiring": (lambda given: given in WIRINGS, f"give one of {', '.join(WIRINGS)}"),
    }
    for key, (rule, allowed) in rules.items():
        try:
            Schema({Optional(key): rule}, ignore_extra_keys=True).validate(dict(block))
        except SchemaError:
            near = did_you_mean(block[key], (*WIRINGS, *calibrations, *ranges)) if isinstance(block[key], str) else ""
            raise OptionError(f"{where}: {key}: {block[key]!r} is not allowed; {allowed}{near}") from None


def _is_number(given: Any) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool)


def _preset_entries(
    model: nn.Module, entry: Mapping[str, Any], method: str, profile: str, where: str
) -> list[dict[str, Any]]:
    unknown = [key for key in entry if key not in WIRING_KEYS]
    if unknown:
        raise OptionError(
            f"{where}: key '{unknown[0]}' does not go with 'wiring', which names the modules itself; "
            f"allowed are {', '.join(WIRING_KEYS)}{did_you_mean(unknown[0], WIRING_KEYS)}"
        )
    dtype = str(entry.get("quant_dtype"))
    if not (dtype.startswith("int") and dtype[3:].isdecimal()):
        raise OptionError(f"{where}: quant_dtype {entry.get('quant_dtype')!r} is not allowed; give 'int2' to 'int8'")
    block = {"quantizer": method, "bits": int(dtype[3:]), "wiring": entry["wiring"], "profile": profile}
    given = {key: entry[key] for key in PRESET_KEYS if key in entry}
    extra = {"dynamic_ratio": entry["dynamic_ratio"]} if "dynamic_ratio" in entry else {}
    try:
        return [{**made, **extra} for made in sites_config_list(model, options_from({**block, **given}))]
    except OptionError as error:
        raise OptionError(f"{where}: {error}") from None


def default_dynamic_ratio(model: nn.Module, options: QuantizationOptions) -> float:
    """Return the share of gated quantizers for entries that give none."""
    if options.dynamic_ratio is not None:
        return options.dynamic_ratio
    preset = PRESETS.get(type(model).__name__)
    return DYNAMIC_RATIO if preset is None else preset.dynamic_ratio


def canonical_config_list(
    model: nn.Module, sites: Sequence[Site], entries: Sequence[Mapping[str, Any]], scheme: str
) -> list[dict[str, Any]]:
    """Return one entry for each module of ``sites``, so that NNI selects exactly those targets.

    Raises:
        OptionError: if ``fuse_names`` names a module that does not exist or whose first is not quantized.
    """
    names = {name for name, _ in model.named_modules()}
    fusions: dict[str, tuple[str, ...]] = {}
    for index, entry in enumerate(entries):
        for fused in entry.get("fuse_names", []):
            for name in fused:
                if name not in names:
                    raise OptionError(
                        f"config_list entry {index}: fuse_names: the network has no module '{name}'"
                        f"{did_you_mean(name, names)}"
                    )
            fusions[fused[0]] = tuple(fused)
    canonical: dict[str, dict[str, Any]] = {}
    for site in sites:
        dtype = f"int{site.bits}"
        new = {"op_names": [site.module], "target_names": [], "target_settings": {}, "quant_dtype": dtype}
        entry = canonical.setdefault(site.module, new)
        entry["target_names"].append(site.target)
        entry["target_settings"][site.target] = {"quant_dtype": dtype, "quant_scheme": scheme}
    for first, fused in fusions.items():
        if first not in canonical:
            raise OptionError(
                f"config_list: fuse_names: '{first}' is not quantized, so nothing folds into it; "
                f"quantized are {listing(list(canonical))}"
            )
        entry = canonical[first]
        entry["fuse_names"] = [fused]
        # NNI wants the output of a fused activation under its short name.
        entry["target_names"] = ["_output_" if name == OUTPUT else name for name in entry["target_names"]]
        if OUTPUT in entry["target_settings"]:
            entry["target_settings"]["_output_"] = entry["target_settings"].pop(OUTPUT)
    return list(canonical.values())
