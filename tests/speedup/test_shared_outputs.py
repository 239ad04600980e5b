"""Integer layers without a bias that several nodes read, which OpenVINO would give the scale of one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from srq_nni.quantization.activation import PAMSActivation
from srq_nni.quantization.layers import attach_quantizer, calibrate
from srq_nni.speedup import ModelSpeedupOpenVINO, integer_simulator
from srq_nni.speedup.engine_rules import ENGINES
from srq_nni.speedup.graph import build_graph
from srq_nni.speedup.openvino import core as openvino_core
from srq_nni.speedup.shared_outputs import keep_scales
from tests.speedup.networks import difference, photo_away_from_ties, quantize

pytest.importorskip("onnx")
BITS = 4
Join = Callable[[torch.Tensor, "Shared"], torch.Tensor]


class Shared(nn.Module):
    """A head, an integer convolution, and ``join``, which reads the output of that one in several ways."""

    def __init__(self, join: Join, bias: float | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 8, 3, padding=1, bias=bias is not None)
        if bias is not None:
            nn.init.constant_(self.first.bias, bias)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.codes = nn.Identity()
        self.join = join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.join(self.first(self.head(x)), self)


def own_codes(x: torch.Tensor, network: Shared) -> torch.Tensor:
    return x + network.codes(x)


def next_layer(x: torch.Tensor, network: Shared) -> torch.Tensor:
    return x + network.second(x)


def scaled_first(x: torch.Tensor, network: Shared) -> torch.Tensor:
    return next_layer(x * 0.5, network)


def two_grids(x: torch.Tensor, network: Shared) -> torch.Tensor:
    return torch.cat([network.second(x), network.codes(x)], 1)


def build(join: Join, bias: float | None = None) -> nn.Module:
    network = Shared(join, bias)
    quantize(network, "first", "pams", BITS)
    if join is not own_codes:
        quantize(network, "second", "pams", BITS)
    if join in (own_codes, two_grids):
        attach_quantizer(network, "codes", "_output_0", PAMSActivation(BITS))
    calibrate(network, [torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))])
    return network.eval()


@pytest.mark.parametrize("bias", [None, 0.0, 0.1])
@pytest.mark.parametrize("join", [own_codes, next_layer, scaled_first, two_grids])
def test_openvino_gives_every_reader_the_scale(join: Join, bias: float | None, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    network = build(join, bias)
    simulator = integer_simulator(network, engine="openvino")
    image = photo_away_from_ties(simulator)
    speedup = ModelSpeedupOpenVINO(network, (1, 3, 32, 32), onnx_path=tmp_path / "model.onnx", threads=1)
    speedup.compress()
    with torch.no_grad():
        assert float(difference(speedup.inference(image)[0], simulator(image)).max()) < 0.01
    assert speedup.precision_report().integer_convolutions == (1 if join is own_codes else 2)


@pytest.mark.parametrize(("bias", "guards"), [(None, 1), (0.0, 1), (0.1, 0)])
def test_only_layers_without_bias_are_guarded(bias: float | None, guards: int) -> None:
    proto, _ = build_graph(build(next_layer, bias), ENGINES["openvino"])
    found = [node.input[0] for node in proto.graph.node if node.op_type == "Max"]
    assert len(found) == guards
    before = proto.SerializeToString()
    keep_scales(proto)
    assert proto.SerializeToString() == before, "a second pass finds nothing left to do"


def test_other_engines_get_no_guard() -> None:
    proto, _ = build_graph(build(next_layer), ENGINES["onnxruntime"])
    assert "Max" not in {node.op_type for node in proto.graph.node}


def test_openvino_itself_still_needs_the_guard() -> None:
    """If this fails, the guard can go: out = conv + Q(conv), two operations, which OpenVINO gets wrong by itself."""
    pytest.importorskip("openvino")
    proto, _ = build_graph(build(own_codes), ENGINES["openvino"])
    (guard,) = (node for node in proto.graph.node if node.op_type == "Max")
    guard.op_type = "Identity"
    del guard.input[1]
    core = openvino_core()
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(proto.SerializeToString()), "CPU", config)
    image = np.random.default_rng(0).random((1, 3, 24, 24), np.float32)
    expected = integer_simulator(build(own_codes), engine="openvino")(torch.from_numpy(image)).detach().numpy()
    assert np.abs(compiled(image)[0] - expected).max() > 0.1
