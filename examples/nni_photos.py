"""What the examples for NNI share: the float EDSR of the repository, batches of photos, and PSNR on Y."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import build_float

from demo_photos import HELD_OUT, SCALE, photos  # isort: skip
from demo import WEIGHTS, to_pixels  # isort: skip
from basicsr.metrics import calculate_psnr  # isort: skip
from basicsr.utils.matlab_functions import imresize  # isort: skip

NETWORK = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 32, "num_block": 5, "upscale": SCALE}
TILE, TILES_A_PHOTO, BATCH = 96, 6, 8  # HR pixels
Batch = dict[str, torch.Tensor]


def float_edsr() -> nn.Module:
    """Return the trained float EDSR x2 (32 features, 5 blocks)."""
    model = build_float({**NETWORK, "img_range": 255.0})
    checkpoint.load_weights(model, WEIGHTS)
    return model


def _pair(image: np.ndarray) -> Batch:
    high = image.astype(np.float64) / 255
    low = imresize(high, 1 / SCALE).clip(0, 1)
    return {"gt": _tensor(high), "lq": _tensor((low * 255).round() / 255)}


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()


class Photos:
    """Training tiles and held-out crops, (C, H, W) in [0, 1], made in memory from the demo's photos."""

    def __init__(self, seed: int = 1) -> None:
        generator = np.random.default_rng(seed)
        self.train: list[Batch] = []
        self.test: list[Batch] = []
        for name, image in photos():
            if name in HELD_OUT:
                self.test.append(_pair(image[96:288, 96:288]))
                continue
            for _ in range(TILES_A_PHOTO):
                top, left = (int(generator.integers(0, size - TILE)) for size in image.shape[:2])
                self.train.append(_pair(image[top : top + TILE, left : left + TILE]))

    def batches(self, seed: int = 1) -> Iterator[Batch]:
        """Yield batches for ever, in an order that depends on the seed alone."""
        generator = np.random.default_rng(seed)
        while True:
            chosen = [self.train[i] for i in generator.integers(0, len(self.train), BATCH)]
            flips = [int(axis) for axis in np.flatnonzero(generator.integers(0, 2, 2)) + 1]
            yield {
                key: torch.stack([pair[key] for pair in chosen]).flip([axis + 1 for axis in flips]) for key in chosen[0]
            }

    @torch.no_grad()
    def psnr(self, model: nn.Module) -> float:
        """Return the mean PSNR on Y of the held-out crops, in dB; the network's mode is left as it was."""
        training = model.training
        model.eval()
        scores = []
        for pair in self.test:
            enlarged, original = to_pixels(model(pair["lq"][None])), to_pixels(pair["gt"][None])
            scores.append(calculate_psnr(enlarged, original, crop_border=SCALE, test_y_channel=True))
        model.train(training)
        return float(np.mean(scores))


def pixel_loss(batch: Batch, model: nn.Module) -> torch.Tensor:
    """Return the L1 loss of a batch, as NNI's ``training_step``."""
    return (model(batch["lq"]) - batch["gt"]).abs().mean()


def training_func(data: Photos) -> Any:
    """Return a training function as NNI's ``TorchEvaluator`` wants it."""

    def train(
        model: nn.Module, optimizer: Any, step: Any, scheduler: Any = None, max_steps: int | None = None, *_: Any
    ) -> None:
        model.train()
        for _, batch in zip(range(max_steps or 100), data.batches(), strict=False):
            optimizer.zero_grad()
            step(batch, model).backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()

    return train
