"""Prune an EDSR, take the pruned channels out, then quantize what is left while the whole network teaches it.

    python examples/nni_prune_quantize_distill.py --steps 100

NNI's ``ModelSpeedup`` traces with a tracer of its own, which fails on current PyTorch; it takes ``torch.fx``'s instead.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any

import nni
import torch
from nni.compression.pruning import L1NormPruner
from nni.compression.speedup import ModelSpeedup
from nni.compression.utils import TorchEvaluator
from torch import fx, nn

import srq_nni

from nni_photos import Photos, float_edsr, pixel_loss, training_func  # isort: skip


def pruned_edsr(sparsity: float) -> nn.Module:
    """Return the float EDSR without the weakest channels between the two convolutions of each block."""
    config_list = [{"op_names_re": [r"body\.\d+\.conv1$"], "sparse_ratio": sparsity}]
    _, masks = L1NormPruner(float_edsr(), config_list).compress()
    model = float_edsr().eval()
    mean = model.mean
    graph = fx.Tracer().trace(model)
    model.mean = mean  # EDSR's forward assigns to it, and the trace left a proxy there
    ModelSpeedup(model, torch.rand(1, 3, 24, 24), masks, graph_module=fx.GraphModule(model, graph)).speedup_model()
    return model


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Prune, quantize and distill; return what was printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--sparsity", type=float, default=0.25)
    args = parser.parse_args(argv)
    logging.getLogger("nni").setLevel(logging.WARNING)

    torch.manual_seed(1)
    data, teacher = Photos(), float_edsr()
    model = pruned_edsr(args.sparsity)
    result: dict[str, Any] = {"parameters": (parameter_count(teacher), parameter_count(model))}
    result["float"], result["pruned"] = data.psnr(teacher), data.psnr(model)

    optimizer = nni.trace(torch.optim.Adam)(model.parameters(), lr=2e-4)
    evaluator = TorchEvaluator(training_func(data), optimizer, pixel_loss)
    config_list = srq_nni.config_list(model, method="pams", bits=args.bits, calibration="mse")
    quantizer = srq_nni.PAMSQuantizer(model, config_list, evaluator, calibration_iters=args.steps // 5)
    srq_nni.SKTDistiller.from_compressor(
        quantizer,
        srq_nni.skt_config_list(model),
        teacher_model=teacher,
        teacher_predict=lambda batch, network: network(batch["lq"]),
    ).compress(max_steps=args.steps, max_epochs=None)
    result["trained"] = data.psnr(model)

    before, after = result["parameters"]
    print(f"float EDSR                 {before:>7} parameters  {result['float']:.2f} dB")
    print(f"pruned, not yet retrained  {after:>7} parameters  {result['pruned']:.2f} dB")
    print(f"{args.bits} bits after {args.steps} steps      {after:>7} parameters  {result['trained']:.2f} dB")
    return result


if __name__ == "__main__":
    main()
