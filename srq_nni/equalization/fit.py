"""Float networks that are easier to quantize: the same function, with its tensors in the bases that round best."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from srq_nni.compression.blocks import expose_sites
from srq_nni.compression.config import sites_config_list
from srq_nni.compression.options import QuantizationOptions, options_from
from srq_nni.compression.sites import Site, quantization_sites
from srq_nni.equalization.basis import Basis, State, balanced, evened, in_bases
from srq_nni.equalization.noise import Noise
from srq_nni.equalization.spaces import Freedom, Space, channel_spaces, readers
from srq_nni.errors import QuantizationError
from srq_nni.progress import track
from srq_nni.quantization.methods import get_method
from srq_nni.quantization.targets import WEIGHT

RATE = 1e-2  # of Adam, on logarithms of factors and on angles
TINY = torch.finfo(torch.float32).tiny
TOLERANCE = 1e-3  # of the largest output; float32 leaves some 1e-6


@dataclass(frozen=True)
class Equalized:
    """What ``equalize`` did.

    Attributes:
        linear, positive: number of spaces with a new basis, and with new factors alone.
        before, after: PSNR in dB of the output with the noise of rounding, to the float output (peak 1), untrained.
        moved: largest difference of the float output, which should be zero.
    """

    linear: int
    positive: int
    before: float
    after: float
    moved: float

    def __str__(self) -> str:
        return (
            f"spaces with another basis: {self.linear}, with other factors: {self.positive}; with the noise of "
            f"rounding the output is {self.after:.2f} dB from the float one ({self.before:.2f} before), which moved by "
            f"{self.moved:.1e}"
        )


def equalize(
    model: nn.Module,
    quantization: QuantizationOptions | Mapping[str, Any],
    batches: Sequence[torch.Tensor],
    iterations: int = 150,
    *,
    untrained: bool = False,
    seed: int = 0,
) -> Equalized:
    """Put the tensors of a float network into bases in which rounding them costs least, in place.

    The network computes what it computed, up to rounding of float32. Where only convolutions, sums and concatenations
    touch a tensor, its basis is any invertible matrix (the residual stream of EDSR); behind a ReLU, positive factors
    of single channels. Both start from statistics and follow the gradient of the expected error of the output.

    Args:
        model: float network.
        quantization: what it will be quantized with; says where, and with how many bits.
        batches: images (N, C, H, W), as the network takes them; an iteration uses one of them, in turn.
        iterations: steps of the search, at least 0; none leaves the start from statistics.
        untrained: count what rounding weights costs, too; training takes that away, and hardly what activations cost.
        seed: of the noise.

    Raises:
        OptionError: if the quantization does not fit the network.
        QuantizationError: if the network cannot be traced, no tensor of it is free, nothing that counts is rounded, or
            there is no batch.
    """
    options = quantization if isinstance(quantization, QuantizationOptions) else options_from(quantization)
    if not batches:
        raise QuantizationError("there is no batch to equalize on; give at least one input of the network")
    if iterations < 0:
        raise QuantizationError(f"iterations: {iterations} is not allowed; give a number from 0")
    network, sites, spaces = _prepared(model, options, untrained)
    state: State = dict(network.named_parameters())
    bases = [basis.to(batches[0].device) for basis in _started(network, spaces, batches)]
    symmetric = get_method(options.quantizer).scheme == "symmetric"
    noise = Noise(network, sites, symmetric=symmetric, seed=seed)
    before = _psnr(network, noise, state, state, batches)
    _search(network, noise, state, spaces, bases, batches, iterations)
    found = _exactly(state, spaces, bases)
    moved = _check_same(network, state, found, batches[0])
    after = _psnr(network, noise, state, found, batches)
    model.load_state_dict(found, strict=False)
    linear = sum(space.freedom == Freedom.LINEAR for space in spaces)
    return Equalized(linear, len(spaces) - linear, before, after, moved)


def check_equalizable(model: nn.Module, options: QuantizationOptions) -> None:
    """Raise what ``equalize`` would for a network that trains, as far as that can be known without images."""
    _prepared(model, options, untrained=False)


def _prepared(
    model: nn.Module, options: QuantizationOptions, untrained: bool
) -> tuple[nn.Module, list[Site], list[Space]]:
    """Return a copy of the network, the sites whose rounding counts, and the spaces that may change."""
    network = expose_sites(copy.deepcopy(model)).eval().requires_grad_(False)
    sites = quantization_sites(network, sites_config_list(network, options), options.quantizer)
    return network, _counted(sites, untrained), _rounded_spaces(network, sites)


def _counted(sites: Sequence[Site], untrained: bool) -> list[Site]:
    """Return the sites whose rounding the search makes small."""
    counted = [site for site in sites if untrained or site.target != WEIGHT]
    if not counted:
        raise QuantizationError(
            "only weights are quantized, and what rounding them costs counts for untrained networks alone; "
            "equalize with untrained, or quantize inputs"
        )
    return counted


def _rounded_spaces(network: nn.Module, sites: Sequence[Site]) -> list[Space]:
    """Return the spaces that convolutions with quantizers read."""
    rounded = {site.module for site in sites}
    spaces = [space for space in channel_spaces(network) if any(use.module in rounded for use in readers(space))]
    if not spaces:
        raise QuantizationError(
            f"no tensor of {type(network).__name__} that is quantized may change its basis; "
            "what is between its convolutions fixes them all, so train it as it is"
        )
    return spaces


@torch.no_grad()
def _exactly(state: State, spaces: Sequence[Space], bases: Sequence[Basis]) -> State:
    """Return the parameters in their bases, computed in double precision."""
    wide = {name: value.double() for name, value in state.items()}
    exact = in_bases(wide, spaces, [basis.double() for basis in bases])
    return {name: value.to(state[name].dtype) for name, value in exact.items()}


@torch.no_grad()
def _check_same(network: nn.Module, state: State, other: State, images: torch.Tensor) -> float:
    """Return by how much other parameters move the output, which must be next to nothing."""
    one, two = (functional_call(network, parameters, (images,)) for parameters in (state, other))
    moved = float((one - two).abs().max())
    if not moved <= TOLERANCE * float(one.abs().max()):
        raise QuantizationError(
            f"{type(network).__name__} would compute something else in the new bases (by {moved:.2g}), so two of its "
            "modules share a weight or it reads one itself; train it as it is"
        )
    return moved


def _search(
    network: nn.Module,
    noise: Noise,
    state: State,
    spaces: Sequence[Space],
    bases: Sequence[Basis],
    batches: Sequence[torch.Tensor],
    iterations: int,
) -> None:
    """Move the bases down the gradient of the error that rounding makes in the output."""
    if not iterations:
        return
    optimizer = torch.optim.Adam(nn.ModuleList(bases).parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for iteration in track(range(iterations), "Equalizing"):
        images = batches[iteration % len(batches)]
        with torch.no_grad():
            truth = functional_call(network, state, (images,))
        error = noise.run(images, in_bases(state, spaces, bases)) - truth
        optimizer.zero_grad()
        (error.square().mean() / truth.square().mean().clamp_min(TINY)).backward()
        optimizer.step()
        schedule.step()


def _started(network: nn.Module, spaces: Sequence[Space], batches: Sequence[torch.Tensor]) -> Iterator[Basis]:
    """Yield the bases where the search starts."""
    seen = _Statistics(network, spaces)
    with torch.no_grad(), seen:
        for images in batches:
            network(images)
    for index, space in enumerate(spaces):
        linear = space.freedom == Freedom.LINEAR
        yield (balanced(seen.covariance[index]) if linear else evened(seen.largest[index])).float()


class _Statistics:
    """Covariances and largest values of the channels of spaces, where convolutions read them."""

    def __init__(self, network: nn.Module, spaces: Sequence[Space]) -> None:
        self.covariance = [torch.zeros(space.channels, space.channels, dtype=torch.float64) for space in spaces]
        self.largest = [torch.zeros(space.channels) for space in spaces]
        self._network, self._spaces = network, spaces
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        for index, space in enumerate(self._spaces):
            for use in readers(space):
                module = self._network.get_submodule(use.module)
                self._handles.append(module.register_forward_pre_hook(self._hook(index, use.offset)))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, index: int, offset: int) -> Any:
        def watch(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            own = args[0][:, offset : offset + self._spaces[index].channels].cpu()
            if self._spaces[index].freedom == Freedom.LINEAR:
                pixels = own.transpose(0, 1).flatten(1).double()
                product = pixels @ pixels.T
                self.covariance[index] += product / product.trace().clamp_min(TINY)
            self.largest[index] = torch.maximum(self.largest[index], own.abs().amax((0, 2, 3)))

        return watch


@torch.no_grad()
def _psnr(
    network: nn.Module, noise: Noise, state: State, other: State, batches: Sequence[torch.Tensor], count: int = 8
) -> float:
    """Return how near the network with the parameters ``other`` and noise comes to itself, in dB (peak 1)."""
    noise.restart()
    errors = [
        (noise.run(images, other) - functional_call(network, state, (images,))).square().mean()
        for images in batches[:count]
    ]
    return -10 * math.log10(max(float(torch.stack(errors).mean()), TINY))
