"""The Q/DQ graph: valid ONNX, the integers of the modules, the rules of each engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from srq_nni.errors import ExportError
from srq_nni.quantization.activation import PAMSActivation
from srq_nni.quantization.layers import attach_quantizer
from srq_nni.speedup.engine_rules import ENGINES, get_rules
from srq_nni.speedup.graph import build_graph
from srq_nni.speedup.integers import read_convolutions
from tests.speedup.networks import calibrated, edsr, mixed, photo, quantize

onnx = pytest.importorskip("onnx")


def graph_of(network: nn.Module, engine: str, **options: Any) -> Any:
    return build_graph(network, ENGINES[engine], **options)[0]


def constants(proto: Any) -> dict[str, Any]:
    return {item.name: onnx.numpy_helper.to_array(item).copy() for item in proto.graph.initializer}


def nodes(proto: Any) -> dict[str, Any]:
    return {node.name: node for node in proto.graph.node}


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize(("method", "bits"), [("pams", 8), ("pams", 2), ("ddtb", 4)])
def test_codes_in_the_file_equal_the_grids_of_the_modules(engine: str, method: str, bits: int) -> None:
    network = edsr(method, bits, blocks=2)
    proto = graph_of(network, engine)
    onnx.checker.check_model(proto, full_check=True)
    values = constants(proto)
    zero = ENGINES[engine].zero_point
    for name, layer in read_convolutions(network).items():
        conv: Any = network.get_submodule(name)
        assert layer.weight is not None and layer.input is not None
        codes = values[f"{name}.weight_q"].astype("int64")
        factor = round(float(layer.weight.scale / values[f"{name}.weight_scale"]))
        assert factor in ((1, 2) if engine == "openvino" else (1,))
        assert torch.equal(torch.from_numpy(codes), layer.weight.codes(conv.weight.detach()).long() * factor)
        dequantized = torch.from_numpy(codes).float() * float(values[f"{name}.weight_scale"])
        assert torch.equal(dequantized, conv.weight_quantizer(conv.weight).detach())
        assert float(values[f"{name}.input_scale"]) == layer.input.scale
        limits = [values[f"{name}.input_{end}"] for end in ("min", "max")]
        expected = (layer.input.minimum, layer.input.maximum)
        if ENGINES[engine].clip == "float":
            assert [round(float(limit) / layer.input.scale) for limit in limits] == list(expected)
        else:
            assert [int(limit) - zero for limit in limits] == list(expected)


@pytest.mark.parametrize("engine", list(ENGINES))
def test_scales_and_zero_points_are_0d_constants(engine: str) -> None:
    proto = graph_of(edsr("pams", 4), engine)
    values = constants(proto)
    pairs = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == 2 * 3
    for node in pairs:
        assert all(values[name].shape == () for name in node.input[1:])
        weight = node.input[0].endswith("weight_q")
        assert int(values[node.input[2]]) == (0 if weight else ENGINES[engine].zero_point)


def test_order_of_nodes_and_names_per_engine() -> None:
    network = edsr("pams", 4)
    for engine, chain in {
        "openvino": ["Div", "Round", "QuantizeLinear", "Clip", "DequantizeLinear", "Conv"],
        "onnxruntime": ["QuantizeLinear", "Clip", "DequantizeLinear", "Conv"],
        "tensorrt": ["Clip", "QuantizeLinear", "DequantizeLinear", "Conv"],
    }.items():
        proto = graph_of(network, engine)
        producers = {output: node for node in proto.graph.node for output in node.output}
        node = nodes(proto)["/body/body.0/conv1/Conv"]
        found = [node.op_type]
        while node.input[0] != "/conv_first/Conv_output_0":
            node = producers[node.input[0]]
            found.append(node.op_type)
        assert found[::-1] == chain
        assert {"body.0.conv1.input_q", "body.0.conv2.input_dq", "body.0.conv1.weight_dq"} <= set(nodes(proto))
        assert not any(name in constants(proto) for name in ("body.0.conv1.weight", "body.0.conv2.weight"))


def test_openvino_weights_are_even_where_they_fit() -> None:
    assert (constants(graph_of(edsr("pams", 7), "openvino"))["body.0.conv1.weight_q"] % 2 == 0).all()
    assert (constants(graph_of(edsr("pams", 8), "openvino"))["body.0.conv1.weight_q"] % 2 != 0).any()


def test_onnxruntime_keeps_the_bias_out_of_the_convolution() -> None:
    network = edsr("pams", 4)
    node = nodes(graph_of(network, "onnxruntime"))["/body/body.0/conv1/Conv"]
    assert len(node.input) == 2
    assert len(nodes(graph_of(network, "openvino"))["/body/body.0/conv1/Conv"].input) == 3


@pytest.mark.parametrize("engine", list(ENGINES))
def test_integer_bias(engine: str) -> None:
    network = edsr("pams", 8)
    layer = read_convolutions(network, integer_bias=True)["body.0.conv1"]
    values = constants(graph_of(network, engine, integer_bias=True))
    assert layer.bias_codes is not None and layer.product is not None
    if engine == "tensorrt":
        expected = layer.bias_codes.float() * layer.product
        assert torch.equal(torch.from_numpy(values["body.0.conv1.bias_on_grid"]), expected)
    else:
        assert torch.equal(torch.from_numpy(values["body.0.conv1.bias_q"]).long(), layer.bias_codes)
        assert float(values["body.0.conv1.bias_scale"]) == layer.product


def test_metadata_says_what_the_file_is() -> None:
    proto = graph_of(edsr("ddtb", 3), "openvino", metadata={"wiring": "paper"})
    assert {item.key: item.value for item in proto.metadata_props} == {
        "srq_format": "1",
        "engine": "openvino",
        "method": "ddtb",
        "weight_bits": "3",
        "activation_bits": "3",
        "wiring": "paper",
    }
    assert proto.producer_name == "srq-nni"


def test_sizes_are_dynamic() -> None:
    graph = graph_of(edsr("pams", 4), "openvino").graph
    dims = [dim.dim_param or dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", 3, "height", "width"]


def test_a_tensor_read_on_one_grid_is_quantized_once() -> None:
    found = nodes(graph_of(mixed(4), "openvino"))
    assert "left.input_q" in found and "right.input_q" not in found
    assert found["/left/Conv"].input[0] == found["/right/Conv"].input[0] == "left.input_dq"


def test_a_layer_that_runs_twice_shares_its_weight() -> None:
    found = nodes(graph_of(mixed(4), "openvino"))
    assert found["/twice/Conv"].input[1] == found["/twice_1/Conv"].input[1] == "twice.weight_dq"
    assert {"twice.input_q", "twice.input@2_q"} <= set(found)


def test_a_layer_registered_under_two_names() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
    network.add_module("again", network[0])
    quantize(network, "0", "pams", 4)
    proto = graph_of(calibrated(network, photo()), "openvino")
    assert [node.input[1] for node in proto.graph.node if node.op_type == "Conv"] == ["0.weight_dq", "0.weight_dq"]


def test_layers_with_equal_weights_keep_their_own() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)))
    network[1].load_state_dict(network[0].state_dict())
    network[2].weight = network[0].weight
    for name in "012":
        quantize(network, name, "pams", 4)
    proto = graph_of(calibrated(network, photo()), "openvino")
    assert {f"{name}.weight_q" for name in "012"} <= set(constants(proto))


def test_ddtb_at_8_bits_is_refused() -> None:
    with pytest.raises(ExportError) as error:
        graph_of(edsr("ddtb", 8), "openvino")
    message = str(error.value)
    assert message.startswith("the input of 'body.0.conv1' has codes from -")
    assert message.endswith(
        "at 8 bits, and engines take int8 (-128 to 127) with zero point 0; "
        "use 7 bits or fewer for DDTB, or PAMS at 8 bits"
    )


@pytest.mark.parametrize("target", ["_input_0", "_output_0"])
def test_quantizers_elsewhere_are_refused(target: str) -> None:
    network = edsr("pams", 4)
    attach_quantizer(network, "body.0.relu", target, PAMSActivation(4))
    child = {"_input_0": "input_quantizer", "_output_0": "output_quantizer"}[target]
    with pytest.raises(ExportError) as error:
        graph_of(network, "openvino")
    assert str(error.value) == (
        f"the quantizer 'body.0.relu.{child}' sits on a ReLU, and only the input and the weight of a convolution can "
        "be written as integers so far; remove it or choose wiring 'paper'"
    )


def test_output_quantizer_of_a_convolution_is_refused() -> None:
    network = edsr("pams", 4)
    attach_quantizer(network, "body.0.conv2", "_output_0", PAMSActivation(4))
    with pytest.raises(ExportError, match=r"^the quantizer 'body\.0\.conv2\.output_quantizer' sits on a QuantConv2d"):
        graph_of(network, "openvino")


def test_a_quantized_layer_that_never_runs_is_refused() -> None:
    network = edsr("pams", 4)
    network.add_module("idle", nn.Conv2d(3, 3, 3))
    quantize(network, "idle", "pams", 4)
    with pytest.raises(ExportError, match=r"^the traced network never runs the quantized convolution\(s\) idle; "):
        graph_of(network, "openvino")


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    with pytest.raises(
        ExportError, match=r"^torch\.onnx cannot trace the network with an input of shape \(1, 5, 8, 8\)"
    ):
        graph_of(edsr("pams", 4), "openvino", sample=torch.zeros(1, 5, 8, 8))


def test_unknown_engine() -> None:
    with pytest.raises(ExportError) as error:
        get_rules("openvno")
    assert str(error.value) == (
        "engine: 'openvno' is not known; give one of openvino, onnxruntime, tensorrt; did you mean 'openvino'?"
    )
