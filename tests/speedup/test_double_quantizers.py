"""A quantizer that reads what another one wrote: both round, though ONNX Runtime would make one of the two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from srq_nni.quantization.activation import DDTBActivation
from srq_nni.quantization.layers import attach_quantizer, calibrate
from srq_nni.speedup import integer_simulator
from srq_nni.speedup.double_quantizers import keep_both_roundings
from srq_nni.speedup.engine_rules import ENGINES
from srq_nni.speedup.graph import build_graph
from tests.speedup.networks import difference, photo, quantize

pytest.importorskip("onnx")
RULES = ENGINES["onnxruntime"]
BETWEEN = {
    "nothing": nn.Identity(),
    "shuffle": nn.PixelShuffle(2),
    "pool": nn.MaxPool2d(2),
    "relu": nn.ReLU(),
}


def network(between: str, bits: int = 8) -> nn.Module:
    """Return a convolution with an output quantizer, ``between``, and a convolution with an input quantizer."""
    torch.manual_seed(0)
    channels = 2 if between == "shuffle" else 8
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.Identity(), BETWEEN[between], nn.Conv2d(channels, 3, 3, padding=1)]
    model = nn.Sequential(*layers)
    attach_quantizer(model, "1", "_output_0", DDTBActivation(bits))
    quantize(model, "3", "ddtb", bits)
    calibrate(model, [photo(32)])
    outer: Any = model[1].get_submodule("output_quantizer")
    outer.lower.data.mul_(0.9)  # another grid than that of the input, and other bounds
    outer.upper.data.mul_(0.8)
    return model.eval()


def run(proto: Any, images: torch.Tensor) -> torch.Tensor:
    """Run a graph in a session with the defaults of ONNX Runtime."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": images.numpy()})[0])


def test_both_round_in_any_session() -> None:
    model = network("nothing")
    with torch.no_grad():
        expected = integer_simulator(model, engine="onnxruntime")(photo(32))
    (exact, _), (merged, _) = (build_graph(model, replace(RULES, merges_quantizers=on)) for on in (True, False))
    assert sum(node.op_type == "Max" for node in exact.graph.node) == 1
    assert float(difference(run(exact, photo(32)), expected).max()) < 0.01
    assert float(difference(run(merged, photo(32)), expected).max()) > 0.1, "ONNX Runtime merges the two"


@pytest.mark.parametrize("between", ["shuffle", "pool", "relu"])
def test_an_operation_between_the_two_keeps_them_apart(between: str) -> None:
    """So nothing is put there."""
    model = network(between)
    with torch.no_grad():
        expected = integer_simulator(model, engine="onnxruntime")(photo(32))
    proto, _ = build_graph(model, RULES)
    assert not any(node.op_type == "Max" for node in proto.graph.node)
    assert float(difference(run(proto, photo(32)), expected).max()) < 0.01


def test_the_values_are_copied_only_where_grids_differ() -> None:
    """Another quantizer on the same grid rounds nothing, so nothing stands in front of it."""
    model = network("nothing")
    outer: Any = model[1].get_submodule("output_quantizer")
    inner: Any = model[3].get_submodule("input_quantizer")
    for own, other in zip(outer.parameters(), inner.parameters(), strict=True):
        own.data.copy_(other.data)
    proto, _ = build_graph(model, RULES)
    assert not any(node.op_type == "Max" for node in proto.graph.node)
    before = [node.SerializeToString() for node in proto.graph.node]
    keep_both_roundings(proto)
    assert [node.SerializeToString() for node in proto.graph.node] == before


def test_below_8_bits_the_clip_keeps_them_apart() -> None:
    model = network("nothing", 6)
    proto, _ = build_graph(model, RULES)
    assert not any(node.op_type == "Max" for node in proto.graph.node)
    with torch.no_grad():
        expected = integer_simulator(model, engine="onnxruntime")(photo(32))
    assert float(difference(run(proto, photo(32)), expected).max()) < 0.01
