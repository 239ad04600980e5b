"""Which tensor of which module a config_list quantizes.

NNI's own function selects the modules, so that an entry means the same in BasicSR and in NNI. Unlike NNI, an entry that
selects nothing or that cannot be quantized is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from srq_nni.compression.settings import all_settings, idle, named_targets, settings_of
from srq_nni.errors import OptionError, QuantizationError, did_you_mean, listing
from srq_nni.quantization.methods import get_method
from srq_nni.quantization.targets import INPUT, WEIGHT, canonical_target

SELECTORS = ("op_types", "op_names", "op_names_re")
EXCLUSIONS = ("exclude_op_types", "exclude_op_names", "exclude_op_names_re")
NNI_SETTINGS = ("quant_dtype", "quant_scheme", "granularity", "apply_method")
ENTRY_KEYS = (*SELECTORS, *EXCLUSIONS, "target_names", "target_settings", "fuse_names", *NNI_SETTINGS)


@dataclass(frozen=True)
class Site:
    """One quantizer to insert: module name, target (``weight``, ``_input_0``, ``_output_0``), bits and options."""

    module: str
    target: str
    bits: int
    options: Mapping[str, Any] = field(default_factory=dict)


def quantization_sites(
    model: nn.Module,
    entries: Sequence[Mapping[str, Any]],
    method: str,
    *,
    trained_by_nni: bool = False,
    numbers: Sequence[int] | None = None,
) -> list[Site]:
    """Resolve a config_list to sites, in the order of the network's modules.

    Entries may have the keys that NNI documents; those of version 2 (``quant_types``, ``quant_bits``) are translated.
    Options of the quantizer, such as ``percentile``, stand in ``target_settings`` or, for all targets, beside them.

    Args:
        model: network whose modules are selected; a module with several names is quantized once, under the first.
        entries: the config_list.
        method: ``pams`` or ``ddtb``.
        trained_by_nni: allow ``fuse_names``, which only the quantizers for NNI know.
        numbers: of the entries in the messages, where they are not their positions.

    Raises:
        OptionError: for a malformed entry, one that selects no module, one that names a target twice, a setting that
            its quantizer refuses or that has no effect, or if no tensor is quantized at all.
    """
    from nni.compression.base.config import select_modules_by_config, trans_legacy_config_list

    found: dict[tuple[int, str], tuple[int, Site]] = {}
    order = {name: position for position, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    for index, entry in enumerate(trans_legacy_config_list([dict(entry) for entry in entries])):
        where = f"config_list entry {index if numbers is None else numbers[index]}"
        _check_entry(entry, method, where, trained_by_nni)
        _check_selectors(model, entry, where)
        modules, _, _ = select_modules_by_config(model, dict(entry))
        if not modules:
            selectors = {key: entry[key] for key in (*SELECTORS, *EXCLUSIONS) if key in entry}
            raise OptionError(f"{where}: {selectors} together select no module; leave one of them out")
        for name in sorted(modules, key=order.__getitem__):
            for site in _entry_sites(name, modules[name], entry, method, where):
                key = (id(modules[name]), site.target)
                if found.get(key, (index,))[0] != index:
                    raise OptionError(f"{where}: target '{site.target}' of '{name}' is quantized twice; name it once")
                found.setdefault(key, (index, site))
    if not found:
        raise OptionError("config_list: no tensor is quantized; name a target whose apply_method is not 'bypass'")
    return sorted((site for _, site in found.values()), key=lambda site: (order[site.module], site.target))


def _check_entry(entry: Mapping[str, Any], method: str, where: str, trained_by_nni: bool) -> None:
    if "fuse_names" in entry and not trained_by_nni:
        raise OptionError(
            f"{where}: fuse_names: only NNI's wrappers fold batch norm; use one of the quantizers for NNI"
        )
    allowed = [*ENTRY_KEYS, *all_settings(method)]
    unknown = [key for key in entry if key not in allowed]
    if unknown:
        raise OptionError(
            f"{where}: key '{unknown[0]}' is not known; allowed are {', '.join(allowed)}"
            f"{did_you_mean(unknown[0], allowed)}"
        )
    if not any(key in entry for key in SELECTORS):
        raise OptionError(f"{where}: none of {', '.join(SELECTORS)} is given; name the modules to quantize")
    if named_targets(entry) == []:
        raise OptionError(
            f"{where}: target_names: it is empty; name a target, or delete it to get {INPUT} and {WEIGHT}"
        )
    for key in idle(entry, entry, method):
        takes = INPUT if key in settings_of(method, INPUT) else WEIGHT
        raise OptionError(
            f"{where}: {key}: it has no effect on {listing(named_targets(entry))}; delete it, or add {takes} to them"
        )


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


def _entry_sites(
    name: str,
    module: nn.Module,
    entry: Mapping[str, Any],
    method: str,
    where: str,
) -> Iterable[Site]:
    given = entry.get("target_settings", {})
    if not isinstance(given, Mapping) or not all(isinstance(value, Mapping) for value in given.values()):
        raise OptionError(f"{where}: target_settings: {given!r} is not a block of targets; give quant_dtype below each")
    names = _strings(entry.get("target_names", list(given) or [INPUT, WEIGHT]), f"{where}: target_names")
    spelt = {target: _canonical(module, target, name, where) for target in (*names, *given)}
    settings = {spelt[target]: value for target, value in given.items()}
    for target in given:
        if spelt[target] not in [spelt[other] for other in names]:
            raise OptionError(
                f"{where}: target_settings: '{target}' is not one of target_names ({listing(names)})"
                f"{did_you_mean(target, names) or '; add it there'}"
            )
    shared = {key: value for key, value in entry.items() if key not in ENTRY_KEYS or key in NNI_SETTINGS}
    for spelling in names:
        target, own = spelt[spelling], dict(settings.get(spelt[spelling], {}))
        allowed = settings_of(method, target)
        common = {key: value for key, value in shared.items() if key in allowed or key in NNI_SETTINGS}
        site = _site(Site(name, target, 0, {**common, **own}), allowed, method, f"{where}: ", spelling)
        if site is not None:
            yield site


def _canonical(module: nn.Module, target: str, name: str, where: str) -> str:
    try:
        return canonical_target(module, target, name)
    except QuantizationError as error:
        raise OptionError(f"{where}: {error}") from None


def _site(raw: Site, allowed: Sequence[str], method: str, where: str, spelling: str) -> Site | None:
    """Return the site with its bits and checked options, or None if NNI's ``bypass`` leaves it in floating point."""
    options = dict(raw.options)
    dtype, apply_method = options.pop("quant_dtype", None), options.pop("apply_method", method)
    granularity, scheme = options.pop("granularity", "default"), options.pop("quant_scheme", None)
    for key in options:
        if key not in allowed:
            raise OptionError(
                f"{where}setting '{key}' of target '{spelling}' is not known to {method}; "
                f"allowed are {', '.join(['quant_dtype', *allowed])}{did_you_mean(key, allowed)}"
            )
    share = options.get("dynamic_ratio", 0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise OptionError(f"{where}dynamic_ratio: {share!r} is not allowed; give a share from 0 to 1")
    if apply_method not in ("bypass", method):
        raise OptionError(
            f"{where}apply_method: {apply_method!r} is NNI's own arithmetic and {method} brings another; "
            f"delete the key, or give 'bypass' to leave the target in floating point"
        )
    if granularity != "default":
        raise OptionError(
            f"{where}granularity: {granularity!r} is not allowed; delete it: {method} is per tensor, and weights "
            "with weight_range: learned_per_channel per output channel"
        )
    own_scheme = get_method(method).scheme
    if scheme not in (None, own_scheme):
        raise OptionError(f"{where}quant_scheme: {scheme!r} is not allowed; {method} is {own_scheme}: delete it")
    bits = _bits_of(dtype, where)
    _check_settings(raw.target, bits, options, method, where)
    return None if apply_method == "bypass" else Site(raw.module, raw.target, bits, options)


def _check_settings(target: str, bits: int, options: Mapping[str, Any], method: str, where: str) -> None:
    """Let the quantizer itself say what it does not take."""
    maker = get_method(method).weight if target == WEIGHT else get_method(method).activation
    try:
        maker(bits, **{key: value for key, value in options.items() if key != "dynamic_ratio"})
    except QuantizationError as error:
        raise OptionError(f"{where}{error}") from None


def _bits_of(dtype: Any, where: str) -> int:
    text = str(dtype)
    if text.startswith("int") and text[3:].isdigit() and 2 <= int(text[3:]) <= 8:
        return int(text[3:])
    raise OptionError(f"{where}quant_dtype {dtype!r} is not allowed; give 'int2' to 'int8'")
