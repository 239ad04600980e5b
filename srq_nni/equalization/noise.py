"""What rounding will do to a float network, as noise whose size can be differentiated.

A quantizer with step s adds, to what it is given, an error that is close to uniform in [-s / 2, s / 2]. The step
follows from the range of the tensor, so a basis in which the range is smaller makes less noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from srq_nni.compression.sites import Site
from srq_nni.quantization.grid import along_channels, step_count, symmetric_maximum
from srq_nni.quantization.targets import INPUT_PREFIX, WEIGHT
from srq_nni.quantization.weight import PER_CHANNEL

EXTREMES = 4  # images of a batch over which the range is averaged, so that it does not hang on one pixel


class Noise:
    """Runs a network with noise where quantizers will be.

    Args:
        model: float network with the modules that ``sites`` name.
        sites: of the quantizers.
        symmetric: the method's grids are symmetric, else their lower end is the smallest value, or 0.
        seed: of the noise.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], *, symmetric: bool, seed: int = 0) -> None:
        self._model, self._symmetric = model, symmetric
        self._weights = [site for site in sites if site.target == WEIGHT]
        self._activations = [site for site in sites if site.target != WEIGHT]
        self._generator = torch.Generator().manual_seed(seed)

    def restart(self, seed: int = 0) -> None:
        """Draw the same noise again."""
        self._generator.manual_seed(seed)

    def run(self, images: torch.Tensor, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the output for ``images`` (N, C, H, W) with the parameters ``state`` and noise on both operands."""
        noisy = dict(state)
        for site in self._weights:
            name = f"{site.module}.weight"
            noisy[name] = self._rounded_weight(state[name], site)
        with self._on_activations():
            output: torch.Tensor = functional_call(self._model, noisy, (images,))
        return output

    def _rounded_weight(self, weight: torch.Tensor, site: Site) -> torch.Tensor:
        own = site.options.get("weight_range") == PER_CHANNEL
        largest = along_channels(weight.flatten(1).abs().amax(1), weight) if own else weight.abs().amax()
        step = largest / symmetric_maximum(site.bits) if self._symmetric else 2 * largest / step_count(site.bits)
        return self._with_noise(weight, step)

    def _rounded_activation(self, x: torch.Tensor, bits: int) -> torch.Tensor:
        pixels = x.flatten(1)
        count = min(EXTREMES, len(pixels))
        if self._symmetric:
            return self._with_noise(x, pixels.abs().amax(1).topk(count).values.mean() / symmetric_maximum(bits))
        lower = pixels.amin(1).topk(count, largest=False).values.mean().clamp(max=0)
        upper = pixels.amax(1).topk(count).values.mean()
        return self._with_noise(x, (upper - lower) / step_count(bits))

    def _with_noise(self, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        drawn = torch.rand(x.shape, generator=self._generator, dtype=x.dtype) - 0.5
        return x + step * drawn.to(x.device)

    @contextmanager
    def _on_activations(self) -> Iterator[None]:
        with ExitStack() as hooks:
            for site in self._activations:
                module, position = self._model.get_submodule(site.module), int(site.target.rpartition("_")[2])
                if site.target.startswith(INPUT_PREFIX):
                    hook = partial(self._before, bits=site.bits, position=position)
                    handle = module.register_forward_pre_hook(hook)
                else:
                    handle = module.register_forward_hook(partial(self._after, bits=site.bits))
                hooks.callback(handle.remove)
            yield

    def _before(self, module: nn.Module, args: tuple[Any, ...], *, bits: int, position: int) -> tuple[Any, ...]:
        return (*args[:position], self._rounded_activation(args[position], bits), *args[position + 1 :])

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor, *, bits: int) -> torch.Tensor:
        return self._rounded_activation(output, bits)
