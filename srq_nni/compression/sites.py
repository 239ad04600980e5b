"""Which tensor of which module a config_list quantizes.

NNI's own function selects the modules, so that an entry means the same in BasicSR and in NNI. Unlike NNI, an entry that
selects nothing or that cannot be quantized is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from srq_nni.errors import OptionError, did_you_mean, listing
from srq_nni.quantization.layers import INPUT, OUTPUT, WEIGHT
from srq_nni.quantization.methods import METHODS

SELECTORS = ("op_types", "op_names", "op_names_re")
EXCLUSIONS = ("exclude_op_types", "exclude_op_names", "exclude_op_names_re")
ENTRY_KEYS = (*SELECTORS, *EXCLUSIONS, "target_names", "target_settings", "quant_dtype")
TARGET_ALIASES = {"_input_": INPUT, "_output_": OUTPUT}


@dataclass(frozen=True)
class Site:
    """One quantizer to insert: module name, target (``weight``, ``_input_0``, ``_output_0``), bits and options."""

    module: str
    target: str
    bits: int
    options: Mapping[str, Any] = field(default_factory=dict)


def quantization_sites(model: nn.Module, entries: Sequence[Mapping[str, Any]], method: str) -> list[Site]:
    """Resolve a config_list to sites, in the order of the network's modules.

    Raises:
        OptionError: for a malformed entry, one that selects no module, or one that names a target twice.
    """
    from nni.compression.base.config import select_modules_by_config

    found: dict[tuple[str, str], Site] = {}
    for index, entry in enumerate(entries):
        where = f"config_list entry {index}"
        _check_entry(entry, where)
        _check_selectors(model, entry, where)
        modules, _, _ = select_modules_by_config(model, dict(entry))
        if not modules:
            selectors = {key: entry[key] for key in (*SELECTORS, *EXCLUSIONS) if key in entry}
            raise OptionError(f"{where}: {selectors} together select no module; leave one of them out")
        for module in sorted(modules):
            for site in _entry_sites(module, entry, method, where):
                if (site.module, site.target) in found:
                    raise OptionError(f"{where}: target '{site.target}' of '{module}' is quantized twice; name it once")
                found[site.module, site.target] = site
    order = {name: position for position, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    return sorted(found.values(), key=lambda site: (order[site.module], site.target))


def _check_entry(entry: Mapping[str, Any], where: str) -> None:
    unknown = [key for key in entry if key not in ENTRY_KEYS]
    if unknown:
        raise OptionError(
            f"{where}: key '{unknown[0]}' is not known; allowed are {', '.join(ENTRY_KEYS)}"
            f"{did_you_mean(unknown[0], ENTRY_KEYS)}"
        )
    if not any(key in entry for key in SELECTORS):
        raise OptionError(f"{where}: none of {', '.join(SELECTORS)} is given; name the modules to quantize")


def _check_selectors(model: nn.Module, entry: Mapping[str, Any], where: str) -> None:
    """Check that each name, type and pattern of an entry selects something, so that none of them is a typo."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    types = sorted({type(module).__name__ for module in model.modules()})
    for key in (*SELECTORS, *EXCLUSIONS):
        pool = types if key.endswith("types") else names
        for wanted in _strings(entry.get(key, []), f"{where}: {key}"):
            try:
                known = any(re.match(wanted, name) for name in pool) if key.endswith("_re") else wanted in pool
            except re.error as error:
                raise OptionError(f"{where}: {key}: {wanted!r} is not a pattern ({error}); mend it") from None
            if not known:
                near = did_you_mean(wanted, pool) or f"; the network has {listing(pool)}"
                raise OptionError(f"{where}: {key}: {wanted!r} selects no module{near}")


def _strings(given: Any, where: str) -> list[str]:
    if isinstance(given, list | tuple) and all(isinstance(item, str) for item in given):
        return list(given)
    raise OptionError(f"{where}: {given!r} is not a list of names; write [{given}]")


def _entry_sites(module: str, entry: Mapping[str, Any], method: str, where: str) -> list[Site]:
    given = entry.get("target_settings", {})
    if not isinstance(given, Mapping) or not all(isinstance(value, Mapping) for value in given.values()):
        raise OptionError(f"{where}: target_settings: {given!r} is not a block of targets; give quant_dtype below each")
    settings = {TARGET_ALIASES.get(name, name): value for name, value in given.items()}
    names = _strings(entry.get("target_names", list(given) or [INPUT, WEIGHT]), f"{where}: target_names")
    targets = [TARGET_ALIASES.get(name, name) for name in names]
    for name in given:
        if TARGET_ALIASES.get(name, name) not in targets:
            raise OptionError(
                f"{where}: target_settings: '{name}' is not one of target_names ({listing(names)})"
                f"{did_you_mean(name, names) or '; add it there'}"
            )
    sites = []
    for name, target in zip(names, targets, strict=True):
        chosen = dict(settings.get(target, {}))
        bits = _bits_of(chosen.pop("quant_dtype", entry.get("quant_dtype")), where)
        allowed = METHODS[method].weight_options if target == WEIGHT else METHODS[method].activation_options
        for key in chosen:
            if key not in allowed:
                raise OptionError(
                    f"{where}: setting '{key}' of target '{name}' is not known to {method}; "
                    f"allowed are {', '.join(['quant_dtype', *allowed])}{did_you_mean(key, allowed)}"
                )
        sites.append(Site(module, target, bits, chosen))
    return sites


def _bits_of(dtype: Any, where: str) -> int:
    text = str(dtype)
    if text.startswith("int") and text[3:].isdigit() and 2 <= int(text[3:]) <= 8:
        return int(text[3:])
    raise OptionError(f"{where}: quant_dtype {dtype!r} is not allowed; give 'int2' to 'int8'")
