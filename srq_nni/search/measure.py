"""What an assignment of bits costs in PSNR, measured on images; every result is kept in a file, so a search resumes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from srq_nni.atomic import atomic_file
from srq_nni.models.dataset_images import ImageSet
from srq_nni.search.bank import Bank, Key

FORMAT_VERSION = 2  # 1 knew fewer ways to start
LUMA = torch.tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1) / 255  # of ITU-R BT.601, as BasicSR's metrics have it


@dataclass(frozen=True)
class Measurement:
    """Errors on Y, one number an image, in squared 8-bit levels.

    Attributes:
        noise: against the output of the float network, before rounding: what quantization adds.
        error: against the truth, after rounding to 8 bits: what PSNR is made of.
    """

    noise: tuple[float, ...]
    error: tuple[float, ...]

    @property
    def psnr(self) -> float:
        """Mean PSNR over the images, in dB."""
        return sum(10 * math.log10(255**2 / max(error, 1e-10)) for error in self.error) / len(self.error)


def _key(widths: Mapping[Key, int]) -> str:
    return " ".join(f"{module}:{target}={bits}" for (module, target), bits in sorted(widths.items()))


class Measurer:
    """Measures assignments, each once.

    Args:
        bank: the network and its quantizers.
        images: to measure on.
        border: pixels of the output that are left out on each side.
        cache: file of results, or None. Results of other options or images in it are not used.
        fingerprint: what the results depend on besides the images.
    """

    def __init__(self, bank: Bank, images: ImageSet, border: int, cache: Path | None, fingerprint: str) -> None:
        self.bank, self.images, self.border, self.cache = bank, images, border, cache
        self.fingerprint = hashlib.sha256(
            f"{FORMAT_VERSION} {fingerprint} {border} {images.fingerprint}".encode()
        ).hexdigest()
        self.results = self._read()
        self.measured = 0  # in this run
        self._float: list[torch.Tensor] = []
        self._base: Measurement | None = None

    def prepare(self) -> Measurement:
        """Calibrate the quantizers, run the float network, and return its measurement, whose noise is 0."""
        if self._base is None:
            self.bank.calibrate([pair.low for pair in self.images.pairs])
            self._float = [self._luma(self._run(pair.low), rounded=False) for pair in self.images.pairs]
            self._base = self._measure()
        return self._base

    def measure(self, widths: Mapping[Key, int]) -> Measurement:
        """Return the measurement of the network with these sites quantized."""
        key = _key(widths)
        if key not in self.results:
            with self.bank.using(widths):
                self.results[key] = self._measure()
            self.measured += 1
            self.write()
        return self.results[key]

    def knows(self, widths: Mapping[Key, int]) -> bool:
        """Whether these widths have been measured."""
        return _key(widths) in self.results

    def write(self) -> None:
        """Write all results, whole or not at all."""
        if self.cache is None:
            return
        content = {
            "format": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "measurements": {key: [result.noise, result.error] for key, result in self.results.items()},
        }
        with atomic_file(self.cache) as file:
            file.write(json.dumps(content).encode())

    def _read(self) -> dict[str, Measurement]:
        if self.cache is None or not self.cache.is_file():
            return {}
        try:
            content = json.loads(self.cache.read_text())
            if content["fingerprint"] != self.fingerprint:
                return {}
            found: Mapping[str, Any] = content["measurements"]
            return {key: Measurement(tuple(noise), tuple(error)) for key, (noise, error) in found.items()}
        except (AttributeError, KeyError, TypeError, ValueError):
            return {}  # damaged by another program: measured again

    @torch.no_grad()
    def _run(self, low: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.bank.network(low)
        return output

    def _measure(self) -> Measurement:
        noise, error = [], []
        for pair, reference in zip(self.images.pairs, self._float, strict=True):
            output = self._run(pair.low)
            noise.append(float((self._luma(output, rounded=False) - reference).square().mean()))
            truth = self._luma(pair.truth, rounded=True)
            error.append(float((self._luma(output, rounded=True) - truth).square().mean()))
        return Measurement(tuple(noise), tuple(error))

    def _luma(self, image: torch.Tensor, *, rounded: bool) -> torch.Tensor:
        """Return Y in [16, 235] of an image (1, 3, H, W) in [0, 1], or the levels of one with other channels."""
        levels = image.double().clamp(0, 1) * 255
        levels = levels.round() if rounded else levels
        if levels.shape[1] == 3:
            levels = (levels * LUMA.double()).sum(1, keepdim=True) + 16
        border = self.border
        return levels[..., border : levels.shape[2] - border, border : levels.shape[3] - border]
