"""The summary of a network in memory: what its quantizers say, counted, and what each engine will make of it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction

import torch
from torch import nn

from srq_nni.compression.phases import enter_phase, gate_candidates, gate_groups, start_bounds_and_gates
from srq_nni.errors import ExportError, QuantizationError
from srq_nni.quantization.activation import ActivationQuantizer, DDTBActivation
from srq_nni.quantization.layers import (
    QuantizedLayer,
    activation_quantizers,
    bounds_of,
    calibrate,
    quantized_convolutions,
    set_mode,
)
from srq_nni.quantization.methods import METHODS
from srq_nni.quantization.weight import GridWeight, WeightQuantizer
from srq_nni.speedup.certificate import count_macs
from srq_nni.speedup.engine_rules import ENGINES, get_rules
from srq_nni.speedup.graph import build_graph, trace_marked
from srq_nni.speedup.lint import lint_graph
from srq_nni.speedup.sources import default_sample, input_sources
from srq_nni.summary.rows import OUTPUT_SIZE, Convolution, EngineVerdict, Summary

SMALL, LARGE = (16, 16), (32, 32)  # sizes at which operations are counted; they grow linearly with the pixels
_OUTERMOST = re.compile(r"(?<![^.])\d+(?![^.])")  # a whole part of a module path
FLOAT_WEIGHT = "its weight is not quantized"


def summarize_network(
    model: nn.Module,
    *,
    subject: str = "",
    wiring: str = "",
    gate_ratio: float | None = None,
    notes: tuple[str, ...] = (),
    engines: Sequence[str] = tuple(ENGINES),
) -> Summary:
    """Return the summary of ``model``, which is left as it is.

    Args:
        model: network with or without quantizers.
        subject: what to call it; by default the class.
        wiring: of its quantizers.
        gate_ratio: the network has not been calibrated yet, and DDTB will give this share of its quantizers a gate
            (0 for none, or PAMS). Engines are then asked about bounds from a synthetic image, and for both cases.
        notes: what a reader has to know.
        engines: whose verdicts to give; a graph is written for each, which takes most of the time.

    Raises:
        ExportError: if the network has no convolution or does not run on a small image.
    """
    network = copy.deepcopy(model).float().eval()
    sample = default_sample(network, SMALL)
    with _cheap_weights(network):
        sources, scale = input_sources(network, sample), scale_of(network, sample)
        macs = macs_at_output(lambda size: count_macs(network, size), scale)
    candidates = {} if gate_ratio is None else gate_candidates(network, gate_ratio)
    verdicts = engine_verdicts(network, engines, untrained=gate_ratio is not None, gated=bool(candidates))
    rows = []
    for name, layer in layers(network):
        quantizer = network.get_submodule(sources[name]) if name in sources else None
        rows.append(
            Convolution(
                name,
                weight_bits(layer),
                quantizer.bits if isinstance(quantizer, ActivationQuantizer) else None,
                _place(name, sources.get(name, "")),
                _gate(quantizer, sources.get(name, "") in candidates),
                layer.weight.numel(),
                0 if layer.bias is None else layer.bias.numel(),
                macs.get(name, 0),
                verdicts[name],
            )
        )
    gates = [q.gate for _, q in activation_quantizers(network) if isinstance(q, DDTBActivation) and q.gate is not None]
    gate_parameters = sum(parameter.numel() for gate in gates for parameter in gate.parameters())
    trained = sum(bound.numel() for bound in bounds_of(network))  # the steps of weights, too, which become scales
    bounds = sum(bound.numel() for _, quantizer in activation_quantizers(network) for bound in quantizer.bounds())
    return Summary(
        subject or type(model).__name__,
        type(model).__name__,
        method_of(network),
        wiring,
        scale,
        tuple(rows),
        sum(parameter.numel() for parameter in network.parameters()) - gate_parameters - trained,
        bounds,
        gate_parameters,
        _gates_to_come(network, gate_ratio) if candidates else len(gates),
        len(candidates),
        notes,
    )


def layers(network: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """Yield (name, layer) of every convolution and linear layer that is not part of a gate."""
    quantizers = tuple(f"{name}." for name, _ in activation_quantizers(network))
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not name.startswith(quantizers):
            yield name, module


def weight_bits(layer: nn.Module) -> int | None:
    """Return the bits of a layer's weight, or None for floating point."""
    quantizer = layer.weight_quantizer if isinstance(layer, QuantizedLayer) else None
    return None if quantizer is None else quantizer.bits


def method_of(network: nn.Module) -> str:
    """Return the names of the methods whose quantizers ``network`` has, joined by commas."""
    kinds = {type(module) for module in network.modules()}
    return ",".join(name for name, method in METHODS.items() if {method.activation, method.weight} & kinds)


def macs_at_output(count: Callable[[tuple[int, int]], Mapping[str, int]], scale: int) -> dict[str, int]:
    """Return the multiply-accumulates of each layer for an output of 1280x720.

    Args:
        count: returns them for an input of (height, width). Two small sizes tell what grows with the pixels and what
            does not, so that no large image has to run, nor 1280 to be a multiple of ``scale``.
        scale: of the super-resolution.
    """
    small, large = count(SMALL), count(LARGE)
    pixels = Fraction(OUTPUT_SIZE[0] * OUTPUT_SIZE[1], scale**2)
    few, many = SMALL[0] * SMALL[1], LARGE[0] * LARGE[1]
    growth = {name: Fraction(large[name] - small[name], many - few) for name in small}
    return {name: round(small[name] + growth[name] * (pixels - few)) for name in small}


@torch.no_grad()
def scale_of(network: nn.Module, sample: torch.Tensor) -> int:
    """Return how many times wider the output of ``network`` is than ``sample``, at least 1.

    Raises:
        ExportError: if it returns no image.
    """
    output = network(sample)
    if not isinstance(output, torch.Tensor) or output.ndim != 4:
        raise ExportError("the network returns no image (N, C, H, W); give a super-resolution network")
    return max(round(output.shape[-1] / sample.shape[-1]), 1)


def engine_verdicts(
    network: nn.Module, engines: Sequence[str] = tuple(ENGINES), *, untrained: bool = False, gated: bool = False
) -> dict[str, dict[str, EngineVerdict]]:
    """Return layer -> engine -> verdict, by writing the graph for each engine and reading it; no engine runs.

    Args:
        network: in eval mode.
        engines: names of ``engine_rules``.
        untrained: take bounds from a synthetic image, since those of an untrained network mean nothing.
        gated: say what gates would change, too. Blocks that repeat are alike, so only the first of them is gated.
    """
    names = [name for name, _ in layers(network)]
    if not engines or not any(quantized_convolutions(network)):
        return {name: {engine: EngineVerdict(FLOAT_WEIGHT) for engine in engines} for name in names}
    network = _frozen(network)
    if untrained:
        calibrate(network, [_synthetic_image(network)])
    plain = _reasons(network, names, engines)
    if not gated:
        return {name: {engine: EngineVerdict(plain[engine][name]) for engine in engines} for name in names}
    first = _first_of_block(names)
    candidates = gate_candidates(network, 1.0)
    for quantizer in candidates.values():
        quantizer.gate_share = None
    with torch.random.fork_rng(devices=[]):
        start_bounds_and_gates(
            nn.ModuleList(candidates[name] for name in set(_first_of_block(candidates).values())), 1.0
        )
    enter_phase(network, "final")
    with_gates = _reasons(network, names, engines)
    return {
        name: {engine: EngineVerdict(plain[engine][name], with_gates[engine][first[name]]) for engine in engines}
        for name in names
    }


def _gates_to_come(network: nn.Module, ratio: float | None) -> int:
    groups = gate_groups(network, ratio or 0.0)
    return sum(int(len(group) * share) for share, group in groups.items())


def _first_of_block(names: Iterable[str]) -> dict[str, str]:
    """Return for each name the first one that differs from it in nothing but the number of the outermost block."""
    firsts: dict[str, str] = {}
    return {name: firsts.setdefault(_OUTERMOST.sub("*", name, count=1), name) for name in names}


def _reasons(network: nn.Module, names: list[str], engines: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return engine -> layer -> why it does not run in integers."""
    sample = default_sample(network, SMALL)
    traced = trace_marked(network, sample)
    found = {}
    for engine in engines:
        rules = get_rules(engine)
        reasons = {name: FLOAT_WEIGHT if weight_bits(network.get_submodule(name)) is None else "" for name in names}
        try:
            proto, _ = build_graph(network, rules, sample=sample, traced=traced)
        except ExportError as error:
            found[engine] = {name: reason or f"no file can be written: {error}" for name, reason in reasons.items()}
            continue
        for verdict in lint_graph(proto, rules):
            if verdict.layer and not reasons[verdict.layer]:
                reasons[verdict.layer] = verdict.reason
        found[engine] = reasons
    return found


@contextmanager
def _cheap_weights(network: nn.Module) -> Iterator[None]:
    """Leave weights in floating point meanwhile: percentiles of every weight would take most of a forward pass."""
    quantizers = [module for module in network.modules() if isinstance(module, WeightQuantizer)]
    enabled = [quantizer.enabled for quantizer in quantizers]
    for quantizer in quantizers:
        quantizer.enabled = False
    try:
        yield
    finally:
        for quantizer, before in zip(quantizers, enabled, strict=True):
            quantizer.enabled = before


@torch.no_grad()
def _frozen(network: nn.Module) -> nn.Module:
    """Return a copy on the CPU whose weights lie on their grids already, which are found once."""
    network = copy.deepcopy(network).cpu()
    set_mode(network, "quantize")
    for name, layer in layers(network):
        quantizer = layer.weight_quantizer if isinstance(layer, QuantizedLayer) else None
        if isinstance(quantizer, WeightQuantizer):
            try:
                grid, codes = quantizer.on_grid(layer.weight)
            except QuantizationError as error:
                raise ExportError(f"the weight of '{name}' has no integer grid: {error}") from error
            layer.weight.copy_(grid.values(codes))
            layer.weight_quantizer = GridWeight(grid)
    return network


def _synthetic_image(network: nn.Module) -> torch.Tensor:
    sample = default_sample(network, LARGE)
    return torch.rand(sample.shape, generator=torch.Generator().manual_seed(0))


def _place(layer: str, source: str) -> str:
    """Return which quantizer feeds ``layer``: ``own``, the place of another one, or nothing."""
    return "own" if source == f"{layer}.input_quantizer" else source.removesuffix("_quantizer")


def _gate(quantizer: nn.Module | None, candidate: bool) -> str:
    if isinstance(quantizer, DDTBActivation) and quantizer.gate is not None:
        return "gate"
    return "maybe" if candidate else ""
