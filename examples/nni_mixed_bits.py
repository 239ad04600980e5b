"""Other bits in each layer, and PAMS beside DDTB in one network: two config_lists, fused.

python examples/nni_mixed_bits.py --steps 120
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import nn

import srq_nni

from nni_photos import Photos, float_edsr, pixel_loss  # isort: skip


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train three blocks with PAMS at 8, 6 and 4 bits and two with DDTB at 3; return what was printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120)
    args = parser.parse_args(argv)

    torch.manual_seed(1)
    data, model = Photos(), float_edsr()
    before = data.psnr(model)

    def train(model: nn.Module, evaluator: srq_nni.LoopEvaluator, steps: int | None, epochs: int | None) -> None:
        optimizer = evaluator.watch(torch.optim.Adam(model.parameters(), lr=1e-4))
        model.train()
        for batch in islice(data.batches(), steps):
            optimizer.zero_grad()
            evaluator.loss(pixel_loss(batch, model), batch).backward()
            optimizer.step()

    first_blocks = [
        {"op_names_re": [rf"body\.{block}\.conv[12]$"], "quant_dtype": f"int{bits}", "calibration": "mse"}
        for block, bits in enumerate((8, 6, 4))
    ]
    last_blocks = [{"op_names_re": [r"body\.[34]\.conv[12]$"], "quant_dtype": "int3", "dynamic_ratio": 0.5}]
    short = args.steps // 6
    pams = srq_nni.PAMSQuantizer(model, first_blocks, srq_nni.LoopEvaluator(train), calibration_iters=short)
    ddtb = srq_nni.DDTBQuantizer.from_compressor(pams, last_blocks, calibration_iters=short, static_iters=short)
    _, config = ddtb.compress(max_steps=args.steps)

    layers = {name: (entry["weight"]["quantizer"], entry["weight"]["quant_bits"]) for name, entry in config.items()}
    result = {"float": before, "trained": data.psnr(model), "layers": layers}
    print(f"float {before:.2f} dB, mixed bits {result['trained']:.2f} dB on held-out photos")
    for name, (method, bits) in layers.items():
        print(f"  {name:<14} {method} {bits} bits")
    return result


if __name__ == "__main__":
    main()
