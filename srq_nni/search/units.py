"""What a search gives bits to: a convolution with its weight and the quantizer that feeds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from srq_nni.compression.sites import Site
from srq_nni.quantization.targets import WEIGHT, quantizer_name
from srq_nni.speedup.sources import input_sources
from srq_nni.summary.rows import Summary

Assignment = Mapping[str, int]  # unit -> bits


@dataclass(frozen=True)
class Unit:
    """Sites that get the same number of bits.

    Attributes:
        name: of its first convolution.
        sites: weights of its convolutions and the activations they read.
        layers: module paths of its convolutions; several if they read the same quantizer.
    """

    name: str
    sites: tuple[Site, ...]
    layers: tuple[str, ...]


def units_of(network: nn.Module, sites: Sequence[Site]) -> tuple[list[Unit], list[Site]]:
    """Return the units among ``sites``, and the sites that feed no quantized weight, whose bits stay.

    Args:
        network: in which a quantizer sits on each site.
        sites: in the order of the network.
    """
    paths = {f"{site.module}.{quantizer_name(site.target)}": site for site in sites if site.target != WEIGHT}
    sources = input_sources(network)
    readers: dict[str, list[Site]] = {}  # source, or the layer itself where it reads a float -> weights
    for site in sites:
        if site.target == WEIGHT:
            readers.setdefault(sources.get(site.module, site.module), []).append(site)
    units = []
    for source, weights in readers.items():
        members = [*weights, paths[source]] if source in paths else weights
        units.append(Unit(weights[0].module, tuple(members), tuple(weight.module for weight in weights)))
    taken = {(site.module, site.target) for unit in units for site in unit.sites}
    return units, [site for site in sites if (site.module, site.target) not in taken]


def with_bits(summary: Summary, units: Sequence[Unit], assignment: Assignment) -> Summary:
    """Return the summary of a network whose units have these bits, from that of the same network with others."""
    rows = {row.name: row for row in summary.rows}
    for unit in units:
        bits = assignment[unit.name]
        reads = any(site.target != WEIGHT for site in unit.sites)
        for layer in unit.layers:
            row = rows[layer]
            rows[layer] = replace(row, weight_bits=bits, activation_bits=bits if reads else row.activation_bits)
    return replace(summary, rows=tuple(rows.values()))
