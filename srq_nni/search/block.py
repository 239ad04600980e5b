"""The ``quantization`` block that means what a search measured, and the check that it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from srq_nni.archs.quantized_arch import build_float
from srq_nni.compression.blocks import expose_sites
from srq_nni.compression.options import BESIDE_CONFIG_LIST, QuantizationOptions, options_from
from srq_nni.compression.profiles import range_key, resolve
from srq_nni.compression.settings import settings_of
from srq_nni.compression.sites import Site, quantization_sites
from srq_nni.errors import OptionError
from srq_nni.quantization.methods import get_method
from srq_nni.quantization.targets import WEIGHT
from srq_nni.search.bank import Key
from srq_nni.search.units import Assignment

if TYPE_CHECKING:
    from srq_nni.search.setup import Problem

REPLACED = (*BESIDE_CONFIG_LIST, "config_list")  # what the entries say instead
READ_A_PERCENTILE = ("percentile", "official")  # ways to find a grid


def quantization_block(problem: Problem, assignment: Assignment, gates: Sequence[Key] = ()) -> dict[str, Any]:
    """Return the block with these bits and the starts that measured best, as a config_list.

    Args:
        problem: what was searched.
        assignment: unit -> bits, of all units.
        gates: sites of DDTB's activations that get a gate.

    Raises:
        OptionError: if the block does not mean what was measured, which would be a defect of this function.
    """
    kept = {key: value for key, value in problem.quantization_block.items() if key not in REPLACED}
    block: dict[str, Any] = {**kept, "quantizer": problem.options.quantizer}
    if problem.options.quantizer == "ddtb":
        block["dynamic_ratio"] = 0  # for all entries that do not say otherwise
    measured = _measured(problem, assignment, gates)
    left_out = _left_out(problem.options)
    modules: dict[str, dict[str, dict[str, Any]]] = {}
    for (module, target), settings in measured.items():
        told = {key: value for key, value in settings.items() if key not in left_out or left_out[key] != value}
        modules.setdefault(module, {})[target] = told
    block["config_list"] = [_entry(module, targets, problem.options.quantizer) for module, targets in modules.items()]
    if _meant(block, problem.network_block) != measured:
        raise OptionError("the config_list that was made does not mean what was measured; please report this")
    return block


def _measured(problem: Problem, assignment: Assignment, gates: Sequence[Key]) -> dict[Key, dict[str, Any]]:
    """Return the settings of each site that were measured, in the order of the network."""
    widths, bank = problem.sites(assignment), problem.measurer.bank
    found = {}
    for site in bank.sites:
        key = (site.module, site.target)
        gate = {"dynamic_ratio": 1} if key in gates else {}
        options = {**bank.options(site, widths[key]), **gate}
        found[key] = _settings(Site(*key, widths[key], options), problem.options.quantizer)
    return found


def _meant(block: Mapping[str, Any], network: Mapping[str, Any]) -> dict[Key, dict[str, Any]]:
    """Return the settings of each site that training gives it."""
    options = options_from(block)
    sites = quantization_sites(expose_sites(build_float(network)), options.config_list or [], options.quantizer)
    return {(site.module, site.target): _settings(site, options.quantizer) for site in sites}


def _settings(site: Site, quantizer: str) -> dict[str, Any]:
    """Return every setting of a site as its quantizer understands it, but a percentile that nothing reads."""
    method = get_method(quantizer)
    make = method.weight if site.target == WEIGHT else method.activation
    names = [name for name in settings_of(quantizer, site.target) if name != "dynamic_ratio"]  # no quantizer's own
    made = make(site.bits, **{key: value for key, value in site.options.items() if key in names})
    found = {name: getattr(made, name) for name in names}
    if found[range_key(site.target)] not in READ_A_PERCENTILE:
        found.pop("percentile", None)
    gate = {"dynamic_ratio": site.options["dynamic_ratio"]} if site.options.get("dynamic_ratio") else {}
    return {"quant_dtype": f"int{site.bits}", **found, **gate}


def _left_out(options: QuantizationOptions) -> dict[str, Any]:
    """Return the settings that an entry has without naming them."""
    entry = {"quantizer": options.quantizer, "profile": options.profile, "config_list": [{}]}
    filled: dict[str, Any] = resolve(entry)["config_list"][0]
    return filled


def _entry(module: str, targets: Mapping[str, Mapping[str, Any]], quantizer: str) -> dict[str, Any]:
    """Return the entry of one module; settings stand once if that means the same, below each target otherwise."""
    shared = {key: value for settings in targets.values() for key, value in settings.items()}
    entry: dict[str, Any] = {"op_names": [module], "target_names": sorted(targets)}
    if all(
        settings
        == {key: value for key, value in shared.items() if key in ("quant_dtype", *settings_of(quantizer, target))}
        for target, settings in targets.items()
    ):
        return {**entry, **shared}
    settings = {target: dict(settings) for target, settings in targets.items()}
    return {**entry, "quant_dtype": shared["quant_dtype"], "target_settings": settings}
