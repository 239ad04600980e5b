"""Which tensor of which module gets which quantizer: the ``quantization`` block, config_lists, and their sites.

A config_list is NNI's own format, and NNI's own function selects the modules, so that an entry means the same in
BasicSR and in NNI. Unlike NNI, an entry that selects nothing or that cannot be quantized is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import nn

from srq_nni.compression.presets import WIRINGS, find_preset
from srq_nni.errors import OptionError, QuantizationError, did_you_mean, listing
from srq_nni.quantization.grid import check_bits
from srq_nni.quantization.layers import INPUT, OUTPUT, WEIGHT
from srq_nni.quantization.methods import METHODS, get_method

SELECTORS = ("op_types", "op_names", "op_names_re")
EXCLUSIONS = ("exclude_op_types", "exclude_op_names", "exclude_op_names_re")
ENTRY_KEYS = (*SELECTORS, *EXCLUSIONS, "target_names", "target_settings", "quant_dtype")
BESIDE_CONFIG_LIST = {
    "bits": "give quant_dtype there",
    "wiring": "its entries are the wiring",
    "calibration": "give it in target_settings there",
    "percentile": "give it in target_settings there",
}
TARGET_ALIASES = {"_input_": INPUT, "_output_": OUTPUT}


class Bits(BaseModel):
    """Bit widths of weights and activations, 2 to 8 each."""

    model_config = ConfigDict(extra="forbid")
    weight: int
    activation: int


class QuantizationOptions(BaseModel):
    """The ``quantization:`` block of a BasicSR YAML file.

    Attributes:
        quantizer: ``pams`` or ``ddtb``.
        bits: 2 to 8, or ``{weight: .., activation: ..}``; needed unless there is a config_list.
        wiring: where the preset of the architecture puts quantizers: ``paper``, ``deploy`` or ``official``.
        config_list: NNI's format, instead of the preset.
        calibration: how activation bounds start; the allowed names depend on the quantizer.
        calibration_iters: number of iterations of the first phase: PAMS trains while its bounds follow the running
            statistic, DDTB watches float activations without an update.
        static_iters: number of iterations that DDTB then trains with its gates held at zero (DDTB only).
        dynamic_ratio: share of activation quantizers that get a gate; the preset's if missing (DDTB only).
        gate_loss_weight: weight of the regulariser that holds the gates, for images in [0, 1] (DDTB only).
        percentile: of DDTB's bounds and weights; the preset's value if missing.
        feature: module whose input SKT compares; the preset's if missing.
    """

    model_config = ConfigDict(extra="forbid")
    quantizer: str
    bits: int | Bits | None = None
    wiring: str = "paper"
    config_list: list[dict[str, Any]] | None = None
    calibration: str | None = None
    calibration_iters: int = Field(default=100, ge=0)
    static_iters: int = Field(default=400, ge=0)
    dynamic_ratio: float | None = Field(default=None, ge=0, le=1)
    gate_loss_weight: float = Field(default=1 / 255, ge=0)
    percentile: float | None = None
    feature: str | None = None

    @field_validator("bits", mode="before")
    @classmethod
    def _bits_in_range(cls, bits: Any) -> Any:
        if not isinstance(bits, Mapping):
            return check_bits(bits)
        if set(bits) != {"weight", "activation"}:
            raise OptionError(f"bits: keys {listing(bits)} are not allowed; give both 'weight' and 'activation'")
        return {tensor: check_bits(width, name=f"bits.{tensor}") for tensor, width in bits.items()}

    @field_validator("quantizer")
    @classmethod
    def _known_quantizer(cls, name: str) -> str:
        return get_method(name).name

    @field_validator("wiring")
    @classmethod
    def _known_wiring(cls, name: str) -> str:
        return check_wiring(name)

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> QuantizationOptions:
        if self.config_list is not None and not self.config_list:
            raise OptionError("config_list: it is empty; name modules in it, or delete it to get the preset")
        if self.config_list is None and self.bits is None:
            raise OptionError("key 'bits' is missing; add it below 'quantization:'")
        for key in ("static_iters", "dynamic_ratio", "gate_loss_weight"):
            if key in self.model_fields_set and self.quantizer != "ddtb":
                raise OptionError(f"{key}: {self.quantizer} has no gates; delete it, or set quantizer: ddtb")
        if self.quantizer == "ddtb" and self.calibration_iters < 1:
            raise OptionError("calibration_iters: 0 leaves ddtb without an observation; give at least 1")
        for key, instead in BESIDE_CONFIG_LIST.items():
            if self.config_list is not None and key in self.model_fields_set:
                raise OptionError(f"{key}: it has no effect beside config_list; {instead}")
        for key in ("calibration", "percentile"):
            if getattr(self, key) is not None and key not in METHODS[self.quantizer].activation_options:
                raise OptionError(f"{key}: {self.quantizer} has no such setting; delete it")
        return self

    def bits_of(self, target: str) -> int:
        """Return the bit width that ``bits`` gives a target; not for options with a config_list."""
        assert self.bits is not None
        if isinstance(self.bits, int):
            return self.bits
        return self.bits.weight if target == WEIGHT else self.bits.activation


@dataclass(frozen=True)
class Site:
    """One quantizer to insert: module name, target (``weight``, ``_input_0``, ``_output_0``), bits and options."""

    module: str
    target: str
    bits: int
    options: Mapping[str, Any] = field(default_factory=dict)


def options_from(block: Mapping[str, Any]) -> QuantizationOptions:
    """Read a ``quantization:`` block.

    Raises:
        OptionError: one sentence that names the key, what was given and what is allowed.
    """
    if not isinstance(block, Mapping):
        raise OptionError(f"quantization: {block!r} is not a block; give at least 'quantizer' and 'bits' below it")
    try:
        return QuantizationOptions.model_validate(dict(block))
    except QuantizationError as error:
        raise OptionError(f"quantization: {error}") from None
    except ValidationError as error:
        raise OptionError(f"quantization: {_sentence(error)}") from None


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, Exception):
        return str(cause)
    if first["type"] == "extra_forbidden":
        known = QuantizationOptions.model_fields
        return f"key '{key}' is not known; allowed are {', '.join(known)}{did_you_mean(key, known)}"
    if first["type"] == "missing":
        return f"key '{key}' is missing; add it below 'quantization:'"
    return f"{key}: {first['input']!r} is not allowed ({first['msg'][0].lower()}{first['msg'][1:]})"


def check_wiring(wiring: str) -> str:
    """Return ``wiring`` if it is known; raise a QuantizationError otherwise."""
    if wiring not in WIRINGS:
        raise QuantizationError(
            f"wiring: {wiring!r} is not known; give one of {', '.join(WIRINGS)}{did_you_mean(wiring, WIRINGS)}"
        )
    return wiring


def config_list(
    arch_or_model: str | nn.Module,
    method: str,
    bits: int | Mapping[str, int],
    wiring: str = "paper",
    **options: Any,
) -> list[dict[str, Any]]:
    """Return the config_list, in NNI's format, that puts a published quantizer on a known architecture.

    Args:
        arch_or_model: an architecture name (``EDSR``, ``RDN``, ``SRResNet``, ``MSRResNet``) or such a network.
        method: ``pams`` or ``ddtb``.
        bits: 2 to 8 for all tensors, or ``{"weight": .., "activation": ..}``.
        wiring: ``paper``, ``deploy`` or ``official``.
        options: ``calibration`` and ``percentile``, as in the ``quantization`` block.

    Raises:
        OptionError: for an unknown architecture, method, wiring, option or bit width.
    """
    block = {"quantizer": method, "bits": dict(bits) if isinstance(bits, Mapping) else bits, "wiring": wiring}
    return sites_config_list(arch_or_model, options_from({**block, **options}))


def sites_config_list(arch_or_model: str | nn.Module, options: QuantizationOptions) -> list[dict[str, Any]]:
    """Return the config_list of ``options``: the user's own, or the preset's for this architecture."""
    if options.config_list is not None:
        return options.config_list
    preset = find_preset(arch_or_model)
    method = METHODS[options.quantizer]
    entries = []
    for pattern, targets in preset.wirings[options.wiring]:
        settings = {}
        for target in targets:
            allowed = method.weight_options if target == WEIGHT else method.activation_options
            published = preset.weight_percentile if target == WEIGHT else preset.percentile
            percentile = published if options.percentile is None else options.percentile
            given = {"calibration": options.calibration, "percentile": percentile}
            chosen = {key: value for key, value in given.items() if key in allowed and value is not None}
            settings[target] = {"quant_dtype": f"int{options.bits_of(target)}", **chosen}
        entries.append(
            {
                "op_names_re": [pattern],
                "target_names": list(targets),
                "quant_dtype": f"int{options.bits_of(INPUT)}",
                "target_settings": settings,
            }
        )
    return entries


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
