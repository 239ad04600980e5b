"""Grouped convolutions with a zero point, which OpenVINO would leave to a kernel that is wrong beside AMX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from srq_nni.quantization.activation import PAMSActivation
from srq_nni.quantization.layers import attach_quantizer, calibrate
from srq_nni.quantization.weight import PAMSWeight
from srq_nni.speedup import ModelSpeedupOpenVINO, integer_simulator
from srq_nni.speedup.engine_rules import ENGINES
from srq_nni.speedup.graph import build_graph
from srq_nni.speedup.grouped_layers import keep_from_gemm
from srq_nni.speedup.machine import cpu_flags, this_machine
from srq_nni.speedup.openvino import core as openvino_core
from tests.speedup.architectures import randomize_norms
from tests.speedup.networks import difference, photo_away_from_ties

pytest.importorskip("onnx")
CHANNELS = 12


def build(groups: int, out: int = CHANNELS, *, rectified: bool = False) -> nn.Module:
    """Return a head, a convolution with a quantizer of 2 bits behind it, a batch norm and a tail.

    Its weights of 8 bits do not fit twice into int8, so its input becomes uint8 with a zero point.
    """
    torch.manual_seed(0)
    middle = nn.Conv2d(CHANNELS, out, 3, padding=1, groups=groups)
    head = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1), nn.ReLU() if rectified else nn.Identity())
    network = nn.Sequential(head, middle, nn.BatchNorm2d(out), nn.Conv2d(out, 3, 3, padding=1))
    randomize_norms(network)
    attach_quantizer(network, "1", "_input_0", PAMSActivation(6))
    attach_quantizer(network, "1", "weight", PAMSWeight(8))
    attach_quantizer(network, "1", "_output_0", PAMSActivation(2))
    calibrate(network, [torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))])
    return network.eval()


@pytest.mark.parametrize(("groups", "out"), [(1, 12), (2, 4), (2, 12), (3, 12), (6, 12), (12, 12), (12, 24)])
def test_openvino_is_exact_with_any_groups(groups: int, out: int, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    network = build(groups, out)
    simulator = integer_simulator(network, engine="openvino")
    image = photo_away_from_ties(simulator)
    speedup = ModelSpeedupOpenVINO(network, (1, 3, 32, 32), onnx_path=tmp_path / "model.onnx", threads=1)
    speedup.compress()
    with torch.no_grad():
        assert float(difference(speedup.inference(image)[0], simulator(image)).max()) < 0.01
    assert speedup.precision_report().integer_convolutions == 1


@pytest.mark.parametrize(
    ("groups", "out", "rectified", "guards"),
    [(2, 12, False, 1), (2, 12, True, 0), (1, 12, False, 0), (12, 12, False, 0)],
)
def test_only_groups_with_a_zero_point_are_guarded(groups: int, out: int, rectified: bool, guards: int) -> None:
    proto, _ = build_graph(build(groups, out, rectified=rectified), ENGINES["openvino"])
    assert sum(node.op_type == "Max" for node in proto.graph.node) == guards
    before = proto.SerializeToString()
    keep_from_gemm(proto)
    assert proto.SerializeToString() == before, "a second pass finds nothing left to do"


def test_other_engines_get_no_guard() -> None:
    proto, _ = build_graph(build(2), ENGINES["tensorrt"])
    assert "Max" not in {node.op_type for node in proto.graph.node}


def test_openvino_itself_still_needs_the_guard_beside_amx() -> None:
    """If this fails where AMX is emulated, the guard can go."""
    pytest.importorskip("openvino")
    if "amx_int8" in cpu_flags() and "emulated" not in this_machine().processor:
        pytest.skip("what a CPU with AMX of its own does was not seen")
    proto, _ = build_graph(build(2), ENGINES["openvino"])
    (guard,) = (node for node in proto.graph.node if node.op_type == "Max")
    guard.op_type = "Identity"
    del guard.input[1]
    core = openvino_core()
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(proto.SerializeToString()), "CPU", config)
    image = photo_away_from_ties(integer_simulator(build(2), engine="openvino"))
    expected = integer_simulator(build(2), engine="openvino")(image).detach().numpy()
    wrong = float(np.abs(compiled(image.numpy())[0] - expected).max()) > 0.05
    assert wrong is ("amx_int8" in cpu_flags())
