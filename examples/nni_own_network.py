"""A network nobody has a preset for, in a training loop of your own: a config_list by hand, and no evaluator.

python examples/nni_own_network.py --steps 200
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import srq_nni

from nni_photos import Photos, pixel_loss  # isort: skip


class Skip(nn.Module):
    """A sum as a module, so that its inputs are targets: ``_input_0`` and ``_input_1``, or by name ``_input_skip``."""

    def forward(self, branch: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return branch + skip


class OwnNetwork(nn.Module):
    """Two convolutions with a skip between an input and an upsampling convolution."""

    def __init__(self, features: int = 24) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, features, 3, padding=1)
        self.body = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1), nn.ReLU(), nn.Conv2d(features, features, 3, padding=1)
        )
        self.skip = Skip()
        self.tail = nn.Sequential(nn.Conv2d(features, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        feature = self.head(x)
        enlarged = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
        return enlarged + self.tail(self.skip(self.body(feature), skip=feature))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Photos, steps: int, quantizer: Any = None) -> None:
    """A loop as anybody has it; DDTB adds one line."""
    model.train()
    for _, batch in zip(range(steps), data.batches(), strict=False):
        optimizer.zero_grad()
        loss = pixel_loss(batch, model)
        gates = None if quantizer is None else quantizer.gate_loss()
        (loss if gates is None else loss + gates).backward()
        optimizer.step()


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train in floating point, then at 4 and 8 bits; return what was printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="of each of the two trainings")
    args = parser.parse_args(argv)

    torch.manual_seed(1)
    data, model = Photos(), OwnNetwork()
    train(model, torch.optim.Adam(model.parameters(), lr=2e-3), data, args.steps)
    result: dict[str, Any] = {"float": data.psnr(model)}

    config_list = [
        {"op_types": ["Conv2d"], "op_names_re": [r"body\."], "quant_dtype": "int4"},
        {"op_names": ["skip"], "target_names": ["_input_skip"], "quant_dtype": "int8"},
        {"op_names": ["tail.0"], "quant_dtype": "int8"},
    ]
    # Activations of this network are near 1, not near 255 as in EDSR, and so is the bounds' learning rate.
    quantizer = srq_nni.DDTBQuantizer(
        model, config_list, bounds_lr=1e-4, calibration_iters=args.steps // 10, static_iters=args.steps // 5
    )
    optimizer = torch.optim.Adam(quantizer.parameter_groups(lr=1e-3))
    train(model, optimizer, data, args.steps, quantizer)
    result["trained"] = data.psnr(model)
    result["bits"] = {
        f"{module} {target}": entry["quant_bits"]
        for module, targets in quantizer.get_calibration_config().items()
        for target, entry in targets.items()
    }
    print(f"float {result['float']:.2f} dB, quantized {result['trained']:.2f} dB on held-out photos")
    for name, bits in result["bits"].items():
        print(f"  {name:<18} {bits} bits")
    return result


if __name__ == "__main__":
    main()
