"""The Q/DQ graph: valid ONNX, the integers of the modules, the rules of each engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from srq_nni import ModelSpeedupONNXRuntime, __version__
from srq_nni.archs.quantized_arch import QuantizedNetwork
from srq_nni.errors import ExportError
from srq_nni.quantization.activation import PAMSActivation
from srq_nni.quantization.layers import attach_quantizer
from srq_nni.speedup.engine_rules import ENGINES, get_rules
from srq_nni.speedup.graph import build_graph
from srq_nni.speedup.integers import read_convolutions
from tests.speedup.architectures import quantized
from tests.speedup.networks import EDSR, calibrated, edsr, mixed, photo, quantize
from tests.sr_data import NETWORK

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
    for name, layer in read_convolutions(network).items():
        conv: Any = network.get_submodule(name)
        assert layer.weight is not None and layer.input is not None and layer.input.grid is not None
        grid, zero = layer.input.grid, int(values[f"{name}.input_zero_point"])
        lowest = 0 if name.endswith("conv2") else grid.minimum  # what comes from the ReLU has no negative codes
        if engine == "tensorrt":  # weights are stored as what the codes mean
            values[f"{name}.weight_q"] = (values[f"{name}.weight_value"] / values[f"{name}.weight_scale"]).round()
        codes = values[f"{name}.weight_q"].astype("int64")
        factor = round(float(layer.weight.scale / values[f"{name}.weight_scale"]))
        assert factor in {"openvino": (1, 2), "onnxruntime": (1, 8, 16, 64), "tensorrt": (1,)}[engine]
        assert torch.equal(torch.from_numpy(codes), layer.weight.codes(conv.weight.detach()).long() * factor)
        dequantized = torch.from_numpy(codes).float() * float(values[f"{name}.weight_scale"])
        assert torch.equal(dequantized, conv.weight_quantizer(conv.weight).detach())
        assert float(values[f"{name}.input_scale"]) == grid.scale
        limits = [values.get(f"{name}.input_{end}") for end in ("min", "max")]
        if limits[0] is None:
            assert (lowest, grid.maximum) == (0, 255 - zero) or bits == 8
        elif ENGINES[engine].clip == "float":
            assert [round(float(limit) / grid.scale) for limit in limits] == [lowest, grid.maximum]
        else:
            assert [int(limit) - zero for limit in limits] == [lowest, grid.maximum]


@pytest.mark.parametrize("engine", list(ENGINES))
def test_scales_and_zero_points_are_0d_constants(engine: str) -> None:
    proto = graph_of(edsr("pams", 4), engine)
    values = constants(proto)
    pairs = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    pairs = [node for node in pairs if "bias" not in node.name]
    assert len(pairs) == 2 * (4 if engine == "tensorrt" else 3)
    for node in pairs:
        assert all(values[name].shape == () for name in node.input[1:])
        signed = "conv1.input" in node.name
        zero = values[node.input[2]]
        assert int(zero) == (7 if signed and engine == "onnxruntime" else 0)
        unsigned = engine == "onnxruntime" or (engine == "openvino" and "conv2" in node.name)
        assert zero.dtype == ("uint8" if unsigned and "input" in node.name else "int8")


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


def test_openvino_weights_of_int8_inputs_are_even_where_they_fit() -> None:
    seven, eight = (constants(graph_of(edsr("pams", bits), "openvino")) for bits in (7, 8))
    assert (seven["body.0.conv1.weight_q"] % 2 == 0).all()
    assert (seven["body.0.conv2.weight_q"] % 2 != 0).any()  # after a ReLU, uint8
    assert (eight["body.0.conv1.weight_q"] % 2 != 0).any()


@pytest.mark.parametrize(("activation", "fineness"), [(8, 4), (7, 8)])
def test_fine_weights_leave_room_for_wide_inputs(activation: int, fineness: int) -> None:
    """At 8 bits inputs reach 254 as bytes; two of them times two weights beyond 64 would leave int16."""
    torch.manual_seed(0)
    network = EDSR(3, 3, num_feat=8, num_block=1, upscale=2)
    quantize(network, "body.0.conv1", "pams", 5, PAMSActivation(activation))
    quantize(network, "body.0.conv2", "pams", 5)
    calibrated(network, photo())
    layers = read_convolutions(network, integer_bias=True)
    assert (layers["body.0.conv1"].fineness, layers["body.0.conv2"].fineness) == (fineness, 8)


def test_onnxruntime_keeps_the_bias_out_of_float_convolutions() -> None:
    """It would round the bias of a convolution that reads DequantizeLinear to a grid of its own choice."""
    found = nodes(graph_of(edsr("pams", 4), "onnxruntime"))
    assert found["/body/body.0/conv1/Conv"].input[2] == "body.0.conv1.bias_dq"  # a ReLU and a quantizer follow
    assert len(found["/body/body.0/conv2/Conv"].input) == 2  # the sum with the float skip follows
    assert len(nodes(graph_of(edsr("pams", 4), "openvino"))["/body/body.0/conv1/Conv"].input) == 3


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
        assert float(values["body.0.conv1.bias_scale"]) == layer.product / layer.fineness


def test_metadata_says_what_the_file_is() -> None:
    proto = graph_of(edsr("ddtb", 3), "openvino", metadata={"wiring": "paper"})
    assert {item.key: item.value for item in proto.metadata_props} == {
        "srq_format": "1",
        "engine": "openvino",
        "method": "ddtb",
        "weight_bits": "3",
        "activation_bits": "3",
        "wiring": "paper",
        "scale": "2",
        "value_range": "1",
        "colours": "rgb",
        "srq_version": __version__,
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


def test_ddtb_at_8_bits_needs_a_zero_point() -> None:
    network = edsr("ddtb", 8)
    for engine in ("openvino", "onnxruntime"):
        values = constants(graph_of(network, engine))
        grid = network.get_submodule("body.0.conv1").input_quantizer.grid()
        assert (values["body.0.conv1.input_zero_point"], values["body.0.conv1.weight_q"].dtype) == (
            -grid.minimum,
            "int8",
        )
        assert values["body.0.conv2.input_zero_point"] == 0
    with pytest.raises(ExportError) as error:
        graph_of(network, "tensorrt")
    message = str(error.value)
    assert message.startswith("the codes of 'body.0.conv1.input' run from -")
    assert message.endswith(
        "at 8 bits, and tensorrt takes int8 (-128 to 127) with zero point 0; "
        "use 7 bits or fewer for DDTB, PAMS at 8 bits, or another engine"
    )


@pytest.mark.parametrize("target", ["_input_0", "_output_0"])
def test_quantizers_on_any_module_are_written(target: str) -> None:
    network = edsr("pams", 4)
    attach_quantizer(network, "body.0.relu", target, PAMSActivation(4))
    child = {"_input_0": "input", "_output_0": "output"}[target]
    found = nodes(graph_of(network, "openvino"))
    assert found[f"body.0.relu.{child}_div"].input[0].startswith("/body/body.0/")
    assert f"body.0.relu.{child}_dq" in {name for node in found.values() for name in node.input}


def test_a_quantizer_may_end_the_network() -> None:
    network = edsr("pams", 4)
    attach_quantizer(network, "conv_last", "_output_0", PAMSActivation(4))
    proto = graph_of(network, "openvino")
    assert proto.graph.output[0].name == "output"


def test_wiring_deploy_quantizes_the_block_input_once() -> None:
    found = nodes(graph_of(quantized("EDSR", "pams", 4, "deploy"), "tensorrt"))
    readers = [name for name, node in found.items() if "body.0.input_dq" in node.input]
    assert readers == ["/body/body.0/conv1/Conv", "/body/body.0/Add"]


@pytest.mark.parametrize("engine", list(ENGINES))
def test_a_factor_of_one_is_no_operation(engine: str) -> None:
    """``res_scale: 1.0`` is traced as a multiplication, for which ONNX Runtime would leave conv2 in floating point."""
    block = {"quantizer": "pams", "bits": 4, "wiring": "deploy"}

    def factors(res_scale: float) -> int:
        torch.manual_seed(0)
        network = QuantizedNetwork({**NETWORK, "res_scale": res_scale}, block)
        graph = graph_of(calibrated(network, photo(16, 16)), engine)
        return sum(node.op_type == "Mul" and node.name.startswith("/body/body.0/") for node in graph.graph.node)

    assert [factors(res_scale) for res_scale in (1, 1.0, 0.5)] == [0, 0, 1]


def test_onnxruntime_runs_scaled_by_one_in_integers(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    network = QuantizedNetwork({**NETWORK, "res_scale": 1.0}, {"quantizer": "pams", "bits": 4, "wiring": "deploy"})
    engine = ModelSpeedupONNXRuntime(calibrated(network, photo(16, 16)), (1, 3, 16, 16), onnx_path=tmp_path / "m.onnx")
    engine.compress()
    assert all(layer.runs_in_integers for layer in engine.report.layers)
    assert engine.precision_report().integer_convolutions == len(engine.report.layers)


def test_a_gate_divides_before_and_multiplies_after_the_convolution() -> None:
    found = nodes(graph_of(quantized("EDSR", "ddtb", 4, "paper", gated=True), "openvino"))
    assert found["body.0.conv1.input_q"].input[0] == "body.0.conv1.input_codes"
    convolution = found["/body/body.0/conv1/Conv"]
    scaled = found["/body/body.0/conv1/Conv_step"]
    assert convolution.input[0] == "body.0.conv1.input_dq" and len(convolution.input) == 2
    assert list(scaled.input) == [convolution.output[0], found["body.0.conv1.input_div"].input[1]]
    assert found["/body/body.0/conv1/Conv_bias"].input[0] == scaled.output[0]


def test_a_quantized_layer_that_never_runs_is_refused() -> None:
    network = edsr("pams", 4)
    network.add_module("idle", nn.Conv2d(3, 3, 3))
    quantize(network, "idle", "pams", 4)
    with pytest.raises(ExportError, match=r"^the traced network never runs the quantized convolution\(s\) idle; "):
        graph_of(network, "openvino")


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    with pytest.raises(ExportError, match=r"^the network does not run on an input of shape \(1, 5, 8, 8\): "):
        graph_of(edsr("pams", 4), "openvino", sample=torch.zeros(1, 5, 8, 8))


def test_unknown_engine() -> None:
    with pytest.raises(ExportError) as error:
        get_rules("openvno")
    assert str(error.value) == (
        "engine: 'openvno' is not known; give one of openvino, onnxruntime, tensorrt; did you mean 'openvino'?"
    )
