"""Every quantizer that a site could get, calibrated once, and the one it has at the moment."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from srq_nni.compression.blocks import follow_released_order
from srq_nni.compression.phases import choose_gated
from srq_nni.compression.sites import Site
from srq_nni.errors import QuantizationError
from srq_nni.quantization.activation import ActivationQuantizer, DDTBActivation
from srq_nni.quantization.calibration import subsample
from srq_nni.quantization.layers import attach_quantizer
from srq_nni.quantization.methods import get_method
from srq_nni.quantization.targets import WEIGHT

# Ways to start, of which the one with the least squared error is taken, unless the user names one: the method's default
# first, which wins a tie. A step that is not trained (weight_range: mse) starts as the default and is left out.
PERCENTILES = (99.0, 99.9, 100.0)
ACTIVATION_STARTS: dict[str, tuple[dict[str, Any], ...]] = {
    "pams": ({"calibration": "mse"}, {"calibration": "max"}),
    "ddtb": ({"calibration": "mse"}, *({"calibration": "percentile", "percentile": each} for each in PERCENTILES)),
}
WEIGHT_STARTS: dict[str, tuple[dict[str, Any], ...]] = {
    "pams": ({"weight_range": "learned"},),  # a maximum may start better at 8 bits alone, where weights lose least
    "ddtb": (
        {"weight_range": "learned"},
        *({"weight_range": "percentile", "percentile": each} for each in PERCENTILES),
    ),
}
Key = tuple[str, str]  # module and target of a site


@dataclass
class _Candidate:
    """One quantizer, the options that make it, and its squared error so far."""

    quantizer: nn.Module
    options: Mapping[str, Any]
    error: float = 0.0


class Slot(ActivationQuantizer):
    """Stands where an activation quantizer will: passes its input on, lets all candidates see it, or is one of them."""

    def __init__(self, site: Site, method: str, widths: Sequence[int], starts: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(max(widths))
        make, own = get_method(method).activation, _without_gates(site.options)
        self.candidates = {
            bits: [_Candidate(make(bits, **{**own, **start}), {**own, **start}) for start in starts] for bits in widths
        }
        for candidate in self._all():
            if isinstance(candidate.quantizer, DDTBActivation):
                candidate.quantizer.gate_share = site.options.get("dynamic_ratio")
        self.work: Literal["pass", "observe", "compare", "quantize"] = "pass"
        self.current: nn.Module | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` (N, ...), quantized if a width is in use."""
        if self.work == "quantize" and self.current is not None:
            return self.current(x)
        for candidate in self._all() if self.work in ("observe", "compare") else ():
            assert isinstance(candidate.quantizer, ActivationQuantizer)
            if self.work == "observe":
                candidate.quantizer.observe(x)
            else:
                sample = subsample(x)
                candidate.error += float((candidate.quantizer.quantize(sample[None]) - sample).square().mean())
        return x

    def bounds(self) -> list[nn.Parameter]:
        """Return nothing: a slot trains no bound."""
        return []

    @property
    def released_order(self) -> bool:
        """Whether a candidate rounds in the order of operations of the released code."""
        quantizers = (candidate.quantizer for candidate in self._all())
        return any(isinstance(each, ActivationQuantizer) and each.released_order for each in quantizers)

    def finish(self) -> None:
        """Start all bounds from what was observed."""
        for candidate in self._all():
            assert isinstance(candidate.quantizer, ActivationQuantizer)
            candidate.quantizer.eval().set_bounds_from_statistics()

    def _all(self) -> Iterator[_Candidate]:
        for candidates in self.candidates.values():
            yield from candidates


class Bank:
    """A float network with a slot for every site; ``using`` fills them.

    Args:
        network: float, in eval mode; it gets the slots.
        sites: where quantizers may sit.
        method: ``pams`` or ``ddtb``.
        widths: bits that may be asked for.
        settled: sites that start as their own options say, since the user gave these.
    """

    def __init__(
        self,
        network: nn.Module,
        sites: Sequence[Site],
        method: str,
        widths: Sequence[int],
        settled: Collection[Key] = (),
    ) -> None:
        self.network, self.method, self.settled = network, method, frozenset(settled)
        self.sites = [replace(site, options=_without_gates(site.options)) for site in sites]
        own: tuple[dict[str, Any], ...] = ({},)
        self._slots: dict[Key, Slot] = {}
        self._weights: dict[Key, dict[int, _Candidate]] = {}
        for given, site in zip(sites, self.sites, strict=True):
            each = sorted({*widths, site.bits})
            key = (site.module, site.target)
            if site.target == WEIGHT:
                starts = own if key in self.settled else WEIGHT_STARTS[method]
                weight = network.get_submodule(site.module).get_parameter("weight").detach()
                self._weights[key] = {bits: _best_weight(weight, site, method, bits, starts) for bits in each}
                attach_quantizer(network, site.module, WEIGHT, _Passing())
            else:
                slot = Slot(given, method, each, own if key in self.settled else ACTIVATION_STARTS[method])
                attach_quantizer(network, site.module, site.target, slot)
                self._slots[key] = slot
        follow_released_order(network)

    @torch.no_grad()
    def calibrate(self, batches: Sequence[torch.Tensor]) -> None:
        """Start all bounds from float activations, and compare the ways to start them."""
        for work in ("observe", "compare"):
            for slot in self._slots.values():
                slot.work = work
            for batch in batches:
                self.network(batch)
            for slot in self._slots.values():
                if work == "observe":
                    slot.finish()
                slot.work = "pass"

    @contextmanager
    def using(self, widths: Mapping[Key, int]) -> Iterator[nn.Module]:
        """Yield the network with these sites quantized, all others in floating point."""
        passing = _Passing()
        try:
            for site in self.sites:
                key = (site.module, site.target)
                if key not in widths:
                    continue
                quantizer = self._chosen(key, widths[key]).quantizer
                if site.target == WEIGHT:
                    self.network.get_submodule(site.module).weight_quantizer = quantizer
                else:
                    self._slots[key].current, self._slots[key].work = quantizer, "quantize"
            yield self.network
        finally:
            for module, _ in self._weights:
                self.network.get_submodule(module).weight_quantizer = passing
            for slot in self._slots.values():
                slot.current, slot.work = None, "pass"

    def options(self, site: Site, bits: int) -> dict[str, Any]:
        """Return the options with which a site starts best at ``bits``."""
        return dict(self._chosen((site.module, site.target), bits).options)

    def gates(self, widths: Mapping[Key, int], ratio: float) -> tuple[Key, ...]:
        """Return the activations to which DDTB's training would give a gate at these bits; none for other methods.

        Args:
            widths: bits of every site.
            ratio: share of those that name no ``dynamic_ratio`` of their own.
        """
        keys = list(self._slots)
        network = nn.ModuleList(self._chosen(key, widths[key]).quantizer for key in keys)
        return tuple(keys[int(name)] for name in choose_gated(network, ratio))

    def _chosen(self, key: Key, bits: int) -> _Candidate:
        if key in self._weights:
            return self._weights[key][bits]
        return min(self._slots[key].candidates[bits], key=lambda candidate: candidate.error)


def _without_gates(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "dynamic_ratio"}


class _Passing(nn.Module):
    """The quantizer of a weight that is in floating point at the moment."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return ``weight``."""
        return weight


class _Known(nn.Module):
    """A weight on its grid, computed once."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the value."""
        return self.value


@torch.no_grad()
def _best_weight(
    weight: torch.Tensor, site: Site, method: str, bits: int, starts: Sequence[Mapping[str, Any]]
) -> _Candidate:
    found = []
    for start in starts:
        options = {**site.options, **start}
        try:
            value = get_method(method).weight(bits, **options).quantize(weight)
        except QuantizationError as error:
            raise QuantizationError(f"the weight of '{site.module}' cannot be quantized: {error}") from error
        found.append(_Candidate(_Known(value), options, float((value - weight).square().mean())))
    return min(found, key=lambda candidate: candidate.error)
