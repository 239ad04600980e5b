"""What ``train: amp: bfloat16`` costs in PSNR: the same short trainings with and without it.

    python benchmarks/amp_psnr.py --out benchmarks/results/amp_psnr.md

Each run trains the float EDSR x2 of weights/ (32 features, 5 blocks) to 4 bits through ``QuantSRModel``, with SKT, on
tiles of the demo's photos; only the key ``amp`` differs within a pair. PSNR is on Y of four held-out crops, in float32.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
import nni_photos
from nni_photos import NETWORK, WEIGHTS, Photos
from provenance import provenance

METHODS: dict[str, dict[str, Any]] = {
    "pams": {"calibration_iters": 10},
    "ddtb": {"calibration_iters": 10, "static_iters": 20},
}


def options(method: str, bits: int, amp: str | None, seed: int) -> dict[str, Any]:
    """Return the options of one run, as BasicSR would have parsed them."""
    opt: dict[str, Any] = {
        "name": "amp",
        "model_type": "QuantSRModel",
        "scale": 2,
        **{"num_gpu": 0, "is_train": True, "dist": False, "rank": 0, "world_size": 1, "manual_seed": seed},
        "network_g": {**NETWORK, "img_range": 255.0},
        "quantization": {"quantizer": method, "bits": bits, **METHODS[method]},
        "path": {"pretrain_network_g": str(WEIGHTS), "pretrain_network_t": str(WEIGHTS)},
        "train": {
            "ema_decay": 0,
            "optim_g": {"type": "Adam", "lr": 1e-4, "betas": [0.9, 0.999]},
            "scheduler": {"type": "MultiStepLR", "milestones": [10**9], "gamma": 0.5},
            "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
            "skt_opt": {"type": "SKTLoss", "loss_weight": 3.92},
        },
    }
    if amp:
        opt["train"]["amp"] = amp
    return opt


def trained_psnr(opt: dict[str, Any], data: Photos, steps: int) -> tuple[float, float]:
    """Return the PSNR in dB before training (bounds just calibrated) and after it."""
    from basicsr.models import build_model

    first = METHODS[opt["quantization"]["quantizer"]]["calibration_iters"] + 1
    model = build_model(copy.deepcopy(opt))
    before = float("nan")
    for iteration, batch in enumerate(islice(data.batches(opt["manual_seed"]), steps), 1):
        if iteration == first:
            model.set_phase(iteration)
            before = data.psnr(model.net_g)
        model.update_learning_rate(iteration, warmup_iter=-1)
        model.feed_data(batch)
        model.optimize_parameters(iteration)
    return before, data.psnr(model.net_g)


def main(argv: list[str] | None = None) -> None:
    """Train, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--tile", type=int, default=96, help="HR pixels of a training tile")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    nni_photos.TILE = args.tile
    data = Photos()
    lines = ["| quantizer | seed | before training | float32 | bfloat16 | difference |", "|---" * 6 + "|"]
    differences = []
    for method in METHODS:
        for seed in args.seeds:
            before, plain = trained_psnr(options(method, args.bits, None, seed), data, args.steps)
            _, fast = trained_psnr(options(method, args.bits, "bfloat16", seed), data, args.steps)
            differences.append(fast - plain)
            lines.append(f"| {method} | {seed} | {before:.2f} | {plain:.2f} | {fast:.2f} | {fast - plain:+.3f} |")
            print(lines[-1], flush=True)
    text = (
        "# PSNR with and without train: amp: bfloat16\n\n"
        f"EDSR 32x5 x2 at {args.bits} bits, {args.steps} steps of 8 LR patches of {args.tile // 2} pixels, SKT; mean "
        f"PSNR (dB) on Y of four held-out crops. {provenance()}.\n\n" + "\n".join(lines) + "\n\n"
        f"Mean difference {statistics.mean(differences):+.3f} dB, from {min(differences):+.3f} to "
        f"{max(differences):+.3f} dB.\n"
    )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
