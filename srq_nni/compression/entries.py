"""A config_list as a user of NNI writes it, and the same spelt out for NNI's own machinery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from srq_nni.compression.config import preset_config_list
from srq_nni.compression.options import QuantizationOptions, options_from
from srq_nni.compression.presets import PRESETS
from srq_nni.compression.sites import Site
from srq_nni.errors import OptionError, did_you_mean, listing
from srq_nni.quantization.targets import OUTPUT

DYNAMIC_RATIO = 0.3  # of EDSR, for a network without a preset
PRESET_KEYS = ("head", "tail", "skip", "calibration", "percentile", "weight_range", "dynamic_ratio")
WIRING_KEYS = ("wiring", "quant_dtype", *PRESET_KEYS)


def expand_entries(
    model: nn.Module, entries: Sequence[Mapping[str, Any]], method: str, profile: str = "default"
) -> list[tuple[int, dict[str, Any]]]:
    """Return (number of the entry it stems from, entry), ``wiring`` entries replaced by those of the network's preset.

    Args:
        model: the network.
        entries: the config_list.
        method: ``pams`` or ``ddtb``.
        profile: of the preset's settings, see ``profiles``; the wiring stays the one that is named.

    Raises:
        OptionError: if a ``wiring`` entry has a key or a value that is not allowed; the message names the entry.
    """
    expanded: list[tuple[int, dict[str, Any]]] = []
    for index, entry in enumerate(entries):
        made = [dict(entry)]
        if "wiring" in entry:
            made = _preset_entries(model, entry, method, profile, f"config_list entry {index}")
        expanded.extend((index, new) for new in made)
    return expanded


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
    try:
        return preset_config_list(model, options_from({**block, **given}))
    except OptionError as error:
        raise OptionError(f"{where}: {str(error).removeprefix('quantization: ')}") from None


def default_dynamic_ratio(model: nn.Module, options: QuantizationOptions) -> float:
    """Return the share of gated quantizers for entries that give none."""
    if options.dynamic_ratio is not None:
        return options.dynamic_ratio
    preset = PRESETS.get(type(model).__name__)
    return DYNAMIC_RATIO if preset is None else preset.dynamic_ratio


def canonical_config_list(
    model: nn.Module, sites: Sequence[Site], entries: Sequence[tuple[int, Mapping[str, Any]]], scheme: str
) -> list[dict[str, Any]]:
    """Return one entry for each module of ``sites``, so that NNI selects exactly those targets.

    Args:
        model: the network.
        sites: what the entries quantize.
        entries: as ``expand_entries`` returns them.
        scheme: of the quantizer, in NNI's words.

    Raises:
        OptionError: if ``fuse_names`` names a module that does not exist or whose first is not quantized.
    """
    names = {name for name, _ in model.named_modules()}
    fusions: dict[str, tuple[str, ...]] = {}
    for index, entry in entries:
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
