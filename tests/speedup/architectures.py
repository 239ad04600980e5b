"""The four architectures, small, quantized in every way, with bounds from a photograph."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from srq_nni.archs.quantized_arch import QuantizedNetwork
from srq_nni.quantization.activation import DDTBActivation
from srq_nni.quantization.gate import Gate
from srq_nni.quantization.layers import activation_quantizers
from tests.speedup.networks import calibrated, photo

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "EDSR": {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "num_block": 2, "upscale": 2},
    "MSRResNet": {"num_feat": 16, "num_block": 2, "upscale": 2},
    "RDN": {"num_feat": 16, "num_block": 2, "num_layer": 3, "num_grow_ch": 8, "upscale": 2},
    "SRResNet": {"num_feat": 16, "num_block": 2, "upscale": 2},
}


def quantized(
    arch: str, method: str, bits: int | dict[str, int], wiring: str, *, gated: bool = False, **options: Any
) -> nn.Module:
    """Return a calibrated network from seed 0; every second quantizer of a ``gated`` one has a gate that is applied.

    Batch norms get statistics as training leaves them: with mean 0 and variance 1 sums of codes stay on a coarse grid,
    where a gate's rounding meets ties.
    """
    torch.manual_seed(0)
    network = QuantizedNetwork(
        {"type": arch, **ARCHITECTURES[arch]}, {"quantizer": method, "bits": bits, "wiring": wiring, **options}
    )
    randomize_norms(network)
    calibrated(network, photo(96, 100))
    quantizers = [quantizer for _, quantizer in activation_quantizers(network)]
    for quantizer in quantizers[::2] if gated else []:
        assert isinstance(quantizer, DDTBActivation)
        gate = Gate(int(quantizer.channels))
        nn.init.normal_(gate.expand.weight, 0, 0.5)
        randomize_norms(gate)
        quantizer.add_gate(gate)
        quantizer.apply_gate(True)
    return network.eval()


@torch.no_grad()
def randomize_norms(network: nn.Module) -> None:
    """Give batch norms factors, offsets and statistics other than 1 and 0."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.2, 1)
