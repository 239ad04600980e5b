"""From an option file to what a search works on: the float network with its sites, units, images and costs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srq_nni import checkpoint
from srq_nni.archs.aliases_arch import ALIASES, is_alias
from srq_nni.archs.network_blocks import network_blocks
from srq_nni.archs.quantized_arch import build_float, insert_quantizers
from srq_nni.compression.blocks import expose_sites
from srq_nni.compression.config import sites_config_list
from srq_nni.compression.options import QuantizationOptions, options_from
from srq_nni.compression.presets import find_preset
from srq_nni.compression.profiles import range_key
from srq_nni.compression.sites import Site, quantization_sites
from srq_nni.errors import OptionError
from srq_nni.models.dataset_images import ImageSet, images_from
from srq_nni.quantization.grid import check_bits
from srq_nni.search.bank import Bank, Key
from srq_nni.search.block import quantization_block
from srq_nni.search.measure import Measurer
from srq_nni.search.units import Assignment, Unit, units_of
from srq_nni.summary.network import summarize_network
from srq_nni.summary.rows import Summary

WIDTHS = (8, 6, 4, 3, 2)


@dataclass(frozen=True)
class Problem:
    """What a search works on.

    Attributes:
        network_block, quantization_block: of the option file; those of a ``QuantSRModel`` for a network such as
            ``PAMS_EDSR``.
        options: the second, checked.
        widths: bits to choose from, the most first.
        units: what gets bits.
        fixed: sites whose bits stay those of the options, since they feed no quantized weight.
        images: measured on.
        summary: of the network with the options' own bits.
        measurer: of its assignments.
        gate_ratio: share of DDTB's activations that get a gate, of those that name none themselves; 0 without gates.
    """

    network_block: dict[str, Any]
    quantization_block: dict[str, Any]
    options: QuantizationOptions
    widths: tuple[int, ...]
    units: tuple[Unit, ...]
    fixed: tuple[Site, ...]
    images: ImageSet
    summary: Summary
    measurer: Measurer
    gate_ratio: float

    def sites(self, assignment: Assignment) -> dict[Key, int]:
        """Return the bits of every site under an assignment of all units."""
        found = {(site.module, site.target): site.bits for site in self.fixed}
        return found | self.only(assignment)

    def only(self, assignment: Assignment) -> dict[Key, int]:
        """Return the bits of the sites of the units that an assignment names."""
        return {
            (site.module, site.target): assignment[unit.name]
            for unit in self.units
            if unit.name in assignment
            for site in unit.sites
        }


def problem_from(
    opt: Mapping[str, Any],
    *,
    widths: Sequence[int] = WIDTHS,
    phase: str = "train",
    count: int = 8,
    size: int = 64,
    cache: Path | None = None,
) -> Problem:
    """Return the problem of an option file.

    Args:
        opt: all options, with a quantization block and float weights.
        widths: bits to choose from.
        phase, count, size: of the images, see ``images_from``.
        cache: file of measurements.

    Raises:
        SRQError: if the options, the weights or the images are missing or wrong, or losses before training say nothing
            about what the options train.
    """
    _check_said_once(opt)
    network_block, block = network_blocks(opt)
    if block is None:
        raise OptionError(
            "key 'quantization' is missing; add it with quantizer and bits: the search says which bits to give where"
        )
    options = options_from(block)
    widths = tuple(sorted((check_bits(bits, name="--bits") for bits in widths), reverse=True))
    if len(set(widths)) < max(len(widths), 2):
        raise OptionError(f"--bits {' '.join(map(str, widths))} is no choice; give at least two different widths")
    weights = (opt.get("path") or {}).get("pretrain_network_g")
    if not weights:
        raise OptionError(
            "path: pretrain_network_g is missing; give float weights of network_g, which the search quantizes"
        )
    model, sited = build_float(network_block), build_float(network_block)
    checkpoint.load_weights(model, weights, param_key=(opt.get("path") or {}).get("param_key_g", "params"))
    expose_sites(model)
    sites = quantization_sites(model, sites_config_list(model, options), options.quantizer)
    _check_tells_losses(options, sites)
    insert_quantizers(sited, options)
    units, fixed = units_of(sited.eval(), sites)
    if not units:
        raise OptionError("quantization: no weight is quantized, so there are no bits to choose; name weights")
    images = images_from(opt, phase, count, size)
    bank = Bank(model.eval(), sites, options.quantizer, widths, _settled(block, options, sites))
    border = _border(opt)
    if min(images.pairs[0].truth.shape[2:]) <= 2 * border:
        raise OptionError(f"--size {size} leaves no pixel inside the border of {border}; give a greater size")
    fingerprint = json.dumps([network_block, block, widths, _digest(weights)], sort_keys=True, default=str)
    wiring = options.wiring if options.config_list is None else "config_list"
    problem = Problem(
        network_block,
        dict(block),
        options,
        widths,
        tuple(units),
        tuple(fixed),
        images,
        summarize_network(sited, subject=str(network_block.get("type")), wiring=wiring, engines=()),
        Measurer(bank, images, border, cache, fingerprint),
        _gate_ratio(options, network_block),
    )
    quantization_block(problem, {unit.name: widths[0] for unit in units})  # a draft: what is wrong shows now, not last
    return problem


def _check_said_once(opt: Mapping[str, Any]) -> None:
    network = opt.get("network_g")
    if "quantization" in opt and isinstance(network, Mapping) and is_alias(network):
        raise OptionError(
            f"quantization: network_g: type {network['type']} says already what is quantized; delete the block, or "
            f"give type: {ALIASES[network['type']][1]}"
        )


def _settled(block: Mapping[str, Any], options: QuantizationOptions, sites: Sequence[Site]) -> set[Key]:
    """Return the sites of which the user said how their grid starts, so that the search has to take that."""
    found = set()
    for site in sites:
        named = block if options.config_list is None else site.options
        if any(named.get(key) is not None for key in (range_key(site.target), "percentile")):
            found.add((site.module, site.target))
    return found


def _check_tells_losses(options: QuantizationOptions, sites: Sequence[Site]) -> None:
    """Check that what is measured before training says something about what trains."""
    beside = " beside profile: official" if options.profile == "official" else ""
    if options.student == "random":
        raise OptionError(
            "quantization: student: random trains other weights than the float ones that a search measures; "
            f"give student: float{beside}"
        )
    if options.quantizer == "ddtb" and any(site.options.get("calibration") == "official" for site in sites):
        raise OptionError(
            "quantization: calibration: official leaves the bounds of ddtb at +-10 until training, so losses before it "
            f"say nothing about bits; give calibration: mse or percentile{beside}"
        )


def _border(opt: Mapping[str, Any]) -> int:
    """Return the ``crop_border`` of the file's metrics, or the scale."""
    metrics = (opt.get("val") or {}).get("metrics") or {}
    given = [
        metric["crop_border"] for metric in metrics.values() if isinstance(metric, Mapping) and "crop_border" in metric
    ]
    return int(given[0]) if given else int(opt["scale"])


def _gate_ratio(options: QuantizationOptions, network: Mapping[str, Any]) -> float:
    if options.quantizer != "ddtb":
        return 0.0
    if options.dynamic_ratio is not None:
        return options.dynamic_ratio
    return find_preset(str(network.get("type"))).dynamic_ratio


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
