"""NNI's compression API on EDSR: a quantizer where ``QATQuantizer`` stood, SKT beside it, integers at the end.

python examples/nni_edsr.py --steps 100 --out edsr_int4.onnx
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nni
import torch
from nni.compression.utils import TorchEvaluator

import srq_nni

from nni_photos import Photos, float_edsr, pixel_loss, training_func  # isort: skip


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, unwrap, rebuild and export; return what was printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("edsr_int4.onnx"))
    args = parser.parse_args(argv)

    torch.manual_seed(1)
    data, model = Photos(), float_edsr()
    teacher = copy.deepcopy(model)

    optimizer = nni.trace(torch.optim.Adam)(model.parameters(), lr=1e-4)
    scheduler = nni.trace(torch.optim.lr_scheduler.CosineAnnealingLR)(optimizer, args.steps)
    evaluator = TorchEvaluator(training_func(data), optimizer, pixel_loss, scheduler)

    config_list = srq_nni.config_list(model, method="pams", bits=args.bits, wiring="paper", calibration="mse")
    quantizer = srq_nni.PAMSQuantizer(model, config_list, evaluator, calibration_iters=args.steps // 5)
    distiller = srq_nni.SKTDistiller.from_compressor(
        quantizer,
        srq_nni.skt_config_list(model),
        teacher_model=teacher,
        teacher_predict=lambda batch, network: network(batch["lq"]),
    )
    distiller.compress(max_steps=args.steps, max_epochs=None)
    calibration_config = quantizer.get_calibration_config()

    exported = srq_nni.export_onnx(quantizer.quantized_network(), args.out, engine="openvino")
    trained = data.psnr(model)
    plain = quantizer.unwrap_model()
    rebuilt = srq_nni.quantized_network(plain, calibration_config)
    result = {
        "float": data.psnr(teacher),
        "trained": trained,
        "unwrapped": data.psnr(plain),
        "rebuilt": data.psnr(rebuilt),
        "layers": len(calibration_config),
    }
    print(f"float                                   {result['float']:.2f} dB")
    print(f"{args.bits} bits, {args.steps} steps                       {result['trained']:.2f} dB")
    print(f"unwrapped: {args.bits}-bit weights, no quantizer  {result['unwrapped']:.2f} dB")
    print(f"rebuilt from the calibration_config     {result['rebuilt']:.2f} dB")
    print(exported)
    return result


if __name__ == "__main__":
    main()
