"""The presets put the same quantizers on the same places through NNI as through BasicSR, on every known network."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import srq_nni
from srq_nni.archs.quantized_arch import build_float, insert_quantizers
from srq_nni.compression.options import options_from
from srq_nni.compression.presets import WIRINGS
from srq_nni.quantization.layers import activation_quantizers, calibrate, quantized_convolutions
from tests.compression.doors import make

COMMON = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "upscale": 2}
NETWORKS: dict[str, dict[str, Any]] = {
    "EDSR": {**COMMON, "type": "EDSR", "num_block": 2, "res_scale": 0.5},
    "MSRResNet": {**COMMON, "type": "MSRResNet", "num_block": 2},
    "RDN": {**COMMON, "type": "RDN", "num_block": 2, "num_layer": 2, "num_grow_ch": 8},
    "SRResNet": {**COMMON, "type": "SRResNet", "num_block": 2},
}


@pytest.mark.parametrize(
    "placed",
    [{"wiring": wiring} for wiring in WIRINGS] + [{"wiring": "deploy", "skip": 6}],
    ids=[*WIRINGS, "deploy, skip"],
)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", ["pams", "ddtb"])
def test_both_doors_put_the_same_quantizers(
    method: str, name: str, placed: dict[str, Any], photographs: torch.Tensor
) -> None:
    torch.manual_seed(0)
    block = {"quantizer": method, "bits": {"weight": 4, "activation": 8}, **placed}
    inserted = insert_quantizers(build_float(NETWORKS[name]), options_from(block))
    x = photographs / 255
    calibrate(inserted, [x])

    torch.manual_seed(0)
    model = build_float(NETWORKS[name])
    entries = srq_nni.config_list(model, method, {"weight": 4, "activation": 8}, **placed)
    quantizer = make(method, model, entries)
    live = quantizer.quantized_network()
    assert [n for n, _ in quantized_convolutions(live)] == [n for n, _ in quantized_convolutions(inserted)]
    assert [n for n, _ in activation_quantizers(live)] == [n for n, _ in activation_quantizers(inserted)]
    calibrate(live, [x])
    assert torch.equal(live(x), inserted(x))

    optimizer = torch.optim.Adam(quantizer.parameter_groups(lr=1e-4))
    for _ in range(6):
        optimizer.zero_grad()
        model.train()(x).sum().backward()
        optimizer.step()
    assert quantizer.clock.phase == "final" and torch.isfinite(model.eval()(x)).all()
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    assert unused == [], "DistributedDataParallel would wait for them"
