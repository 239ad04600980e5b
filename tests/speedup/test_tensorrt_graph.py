"""The ONNX file for TensorRT: NVIDIA's placement rules on every network, and the numbers of the simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from srq_nni.speedup.engine_rules import ENGINES
from srq_nni.speedup.graph import build_graph
from srq_nni.speedup.integers import read_integers
from srq_nni.speedup.simulator import integer_simulator
from tests.speedup.architectures import ARCHITECTURES, quantized
from tests.speedup.networks import difference, edsr, photo, photo_away_from_ties

onnx = pytest.importorskip("onnx")

WIRINGS = ("paper", "deploy", "tensorrt", "official")
# Of the table of operators that the ONNX parser of TensorRT 8.6 reads up to opset 17; of 10 and 11, too.
# fmt: off
READ_BY_8_6 = {
    "Add", "BatchNormalization", "Clip", "Concat", "Constant", "Conv", "DepthToSpace", "DequantizeLinear", "Div",
    "Flatten", "Identity", "LeakyRelu", "Max", "Min", "Mul", "PRelu", "QuantizeLinear", "ReduceMax", "ReduceMean",
    "ReduceMin", "Relu", "Resize", "Round", "Sigmoid", "Slice", "Sub", "Unsqueeze",
}
# fmt: on


class Graph:
    """The file of a network, with producers, readers and constants by tensor."""

    def __init__(self, network: nn.Module) -> None:
        self.proto = build_graph(network, ENGINES["tensorrt"])[0]
        self.nodes = list(self.proto.graph.node)
        self.producers = {output: node for node in self.nodes for output in node.output}
        self.constants = {item.name: onnx.numpy_helper.to_array(item) for item in self.proto.graph.initializer}

    def of(self, kind: str) -> list[Any]:
        return [node for node in self.nodes if node.op_type == kind]

    def readers(self, tensor: str) -> list[Any]:
        return [node for node in self.nodes if tensor in node.input]

    def kind_before(self, tensor: str) -> str:
        return self.producers[tensor].op_type if tensor in self.producers else ""


def as_an_int8_engine(graph: Graph) -> Any:
    """Return the file with every convolution of two dequantized operands as one of codes, scaled afterwards.

    That is what INT8 kernels compute; a float convolution of dequantized values rounds each sum, and may move ties.
    """
    proto = onnx.ModelProto.FromString(graph.proto.SerializeToString())
    helper, to_proto = onnx.helper, onnx.numpy_helper.from_array
    nodes: list[Any] = []
    proto.graph.initializer.append(to_proto(np.float32(1), "one"))
    for node in proto.graph.node:
        nodes.append(node)
        operands = [graph.producers.get(name) for name in node.input[:2]]
        if node.op_type != "Conv" or [getattr(o, "op_type", "") for o in operands] != ["DequantizeLinear"] * 2:
            continue
        product = np.ones((), np.float32)
        for position, operand in enumerate(operands):
            assert operand is not None
            codes = f"{node.name}_codes_{position}"
            nodes.insert(-1, helper.make_node("DequantizeLinear", [operand.input[0], "one"], [codes]))
            node.input[position] = codes
            product = product * graph.constants[operand.input[1]]
        output, bias = node.output[0], graph.constants[node.input[2]] if len(node.input) > 2 else np.float32([0])
        del node.input[2:]
        node.output[0] = f"{output}_sum"
        product = product.reshape(1, -1, 1, 1) if product.ndim else product
        proto.graph.initializer.append(to_proto(product, f"{output}_product"))
        proto.graph.initializer.append(to_proto(bias.reshape(1, -1, 1, 1), f"{output}_bias"))
        nodes.append(helper.make_node("Mul", [node.output[0], f"{output}_product"], [f"{output}_scaled"]))
        nodes.append(helper.make_node("Add", [f"{output}_scaled", f"{output}_bias"], [output]))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def without_optimizations(proto: Any, x: torch.Tensor) -> torch.Tensor:
    """Run the file node by node, as it is written, in ONNX Runtime."""
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnxruntime'")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


@torch.no_grad()
def check_numbers(network: nn.Module, graph: Graph, x: torch.Tensor) -> None:
    """Compare the file with the simulator: as INT8 kernels run it, and as it is written."""
    expected = integer_simulator(network, engine="tensorrt")(x)
    assert difference(without_optimizations(as_an_int8_engine(graph), x), expected).max() < 0.01
    error = difference(without_optimizations(graph.proto, x), expected)
    assert (error > 0.01).float().mean() < 0.05 and error.max() < 3  # a tie may fall to the other side


def check_rules(graph: Graph) -> None:
    """What TensorRT demands of every file: INT8 through QuantizeLinear only, zero point 0, constant scales."""
    assert graph.proto.opset_import[0].version == 17 and len(graph.proto.opset_import) == 1
    assert graph.proto.ir_version <= 8
    assert {node.op_type for node in graph.nodes} <= READ_BY_8_6
    assert {node.domain for node in graph.nodes} == {""}
    for node in graph.of("QuantizeLinear") + graph.of("DequantizeLinear"):
        scale, zero = (graph.constants[name] for name in node.input[1:])
        axes = {attribute.name: attribute.i for attribute in node.attribute}
        assert scale.shape == zero.shape and (scale > 0).all() and not zero.any()
        assert axes == ({"axis": 0} if scale.shape else {})
        assert not scale.shape or node.name.endswith((".weight_q", ".weight_dq"))
        assert (scale.dtype, zero.dtype) == (np.float32, np.int8)
    for node in graph.of("DequantizeLinear"):
        assert graph.kind_before(node.input[0]) == "QuantizeLinear"
    for node in graph.of("QuantizeLinear"):  # codes go nowhere else: neither Clip nor DepthToSpace reads integers
        assert [reader.op_type for reader in graph.readers(node.output[0])] == ["DequantizeLinear"]
    zero_points = {node.input[2] for node in graph.of("QuantizeLinear") + graph.of("DequantizeLinear")}
    assert {v.dtype for n, v in graph.constants.items() if n not in zero_points} <= {np.dtype(np.float32)}
    for node in graph.of("Conv"):
        assert graph.kind_before(node.input[0]) != "Pad"
        assert all(name in graph.constants for name in node.input[2:])  # a bias is a float constant
    assert all(node.attribute[0].name == "blocksize" for node in graph.of("DepthToSpace"))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("method", ["pams", "ddtb"])
def test_rules_and_numbers_of_every_network(arch: str, wiring: str, method: str) -> None:
    network = quantized(arch, method, 4, wiring)
    graph = Graph(network)
    check_rules(graph)
    shuffles = [module for module in network.modules() if isinstance(module, nn.PixelShuffle)]
    assert len(graph.of("DepthToSpace")) == len(shuffles) == 1
    check_numbers(network, graph, photo(40))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("wiring", ["deploy", "tensorrt"])
@pytest.mark.parametrize("method", ["pams", "ddtb"])
def test_skips_with_bits_of_their_own(arch: str, wiring: str, method: str) -> None:
    """With 7 bits, as DDTB has no zero point at 8 here; a value of the skip may lie on a tie of photo(40)."""
    network = quantized(arch, method, 4, wiring, skip=7)
    graph = Graph(network)
    check_rules(graph)
    check_numbers(network, graph, photo_away_from_ties(integer_simulator(network, engine="tensorrt")))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("method", ["pams", "ddtb"])
@pytest.mark.parametrize(("weight_range", "dimensions"), [("learned_per_channel", 1), ("learned_midrise", 0)])
def test_scales_of_channels_and_weights_without_a_level_at_0(
    arch: str, method: str, weight_range: str, dimensions: int
) -> None:
    network = quantized(arch, method, 4, "deploy", weight_range=weight_range, tail=7)
    graph = Graph(network)
    check_rules(graph)
    scales = [graph.constants[node.input[1]] for node in graph.of("QuantizeLinear") if node.name.endswith(".weight_q")]
    assert len(scales) > 4 and all(scale.ndim == dimensions for scale in scales)
    check_numbers(network, graph, photo_away_from_ties(integer_simulator(network, engine="tensorrt")))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gates(arch: str) -> None:
    network = quantized(arch, "ddtb", 4, "deploy", gated=True)
    graph = Graph(network)
    assert graph.proto.opset_import[0].version == 17
    assert {node.op_type for node in graph.nodes} <= READ_BY_8_6
    check_numbers(network, graph, torch.cat([photo(40), photo(40, 200, 200)]))


@pytest.mark.parametrize(("method", "bits"), [("pams", 8), ("pams", 6), ("pams", 2), ("ddtb", 7), ("ddtb", 2)])
def test_weights_are_floats_whose_quantization_gives_the_codes(method: str, bits: int) -> None:
    network = edsr(method, bits)
    graph = Graph(network)
    check_rules(graph)
    for name, layer in read_integers(network).layers.items():
        value, scale = graph.constants[f"{name}.weight_value"], graph.constants[f"{name}.weight_scale"]
        assert layer.weight_codes is not None
        for ratio in (value / scale, value * (np.float32(1) / scale)):  # TensorRT may multiply by the reciprocal
            assert np.abs(ratio - layer.weight_codes.numpy()).max() < 1e-4
        conv: Any = network.get_submodule(name)
        assert torch.equal(torch.from_numpy(value), conv.weight_quantizer(conv.weight).detach())


def test_8_bits_after_a_relu_need_no_clip() -> None:
    """int8 ends at 127 as PAMS does; on signed values the Clip keeps -128 out."""
    graph = Graph(edsr("pams", 8))
    assert [node.name for node in graph.of("Clip")] == ["body.0.conv1.input_clip"]
    before = graph.producers["body.0.conv2.input_q"]
    assert before.input[0] == "/body/body.0/relu/Relu_output_0"
    limits = [graph.constants[name] for name in graph.of("Clip")[0].input[1:]]
    assert np.allclose(limits / graph.constants["body.0.conv1.input_scale"], [-127, 127])


@pytest.mark.parametrize(
    ("arch", "block", "shared"),
    [("EDSR", "body.{}", "Add"), ("MSRResNet", "body.{}", "Add"), ("SRResNet", "residual.{}", "Add")],
)
def test_deploy_has_one_quantizer_for_the_first_convolution_and_the_skip(arch: str, block: str, shared: str) -> None:
    graph = Graph(quantized(arch, "pams", 4, "deploy"))
    for number in range(2):
        codes = f"{block.format(number)}.input_q"
        assert codes in graph.producers
        readers = graph.readers(f"{block.format(number)}.input_dq")
        assert sorted(node.op_type for node in readers) == [shared, "Conv"]


@pytest.mark.parametrize(("arch", "block"), [("EDSR", "body"), ("MSRResNet", "body"), ("SRResNet", "residual")])
def test_wiring_tensorrt_is_that_of_nvidias_advice(arch: str, block: str) -> None:
    """One quantizer feeds the first convolution and the skip; the second convolution goes to the Add as it is."""
    graph = Graph(quantized(arch, "pams", 4, "tensorrt"))
    for number in range(2):
        readers = graph.readers(f"{block}.{number}.input_dq")
        assert sorted(node.op_type for node in readers) == ["Add", "Conv"]
    seconds = [node for node in graph.of("Conv") if node.name.endswith("/conv2/Conv")]
    assert len(seconds) == 2
    for node in seconds:
        assert [graph.kind_before(operand) for operand in node.input[:2]] == ["DequantizeLinear"] * 2
        tensor, kinds = node.output[0], []
        while not kinds or kinds[-1] != "Add":
            (reader,) = graph.readers(tensor)
            kinds.append(reader.op_type)
            tensor = reader.output[0]
        assert "QuantizeLinear" not in kinds


def test_integer_bias_is_a_float_on_the_grid_of_the_accumulator() -> None:
    network = edsr("pams", 6)
    proto = build_graph(network, ENGINES["tensorrt"], integer_bias=True)[0]
    assert not any(node.op_type == "DequantizeLinear" and "bias" in node.name for node in proto.graph.node)
    with torch.no_grad():
        expected = integer_simulator(network, integer_bias=True)(photo(40))
    assert difference(without_optimizations(proto, photo(40)), expected).max() < 0.01


def test_head_and_tail_in_8_bits_leave_depth_to_space_in_floating_point() -> None:
    network = quantized("EDSR", "pams", 4, "deploy", head=8, tail=8)
    graph = Graph(network)
    check_rules(graph)
    (shuffle,) = graph.of("DepthToSpace")
    assert graph.kind_before(shuffle.input[0]) != "QuantizeLinear"
    assert all(graph.kind_before(node.input[0]) == "DequantizeLinear" for node in graph.of("Conv"))
