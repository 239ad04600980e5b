"""The flat config for NNI's own TensorRT 8 backend, read by that backend's own functions with tensorrt faked."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import srq_nni
from srq_nni.errors import ExportError
from srq_nni.speedup import nni_tensorrt_config
from tests.speedup.architectures import quantized
from tests.speedup.networks import calibrated, edsr, photo, quantize


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """NNI's integrated_tensorrt, imported with tensorrt and pycuda faked."""
    tensorrt: Any = types.ModuleType("tensorrt")
    tensorrt.Logger, tensorrt.int8, tensorrt.float16, tensorrt.int32 = object, "int8", "float16", "int32"
    tensorrt.LayerType = types.SimpleNamespace(CONSTANT="constant")
    pycuda: Any = types.ModuleType("pycuda")
    pycuda.driver = types.ModuleType("pycuda.driver")
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    for name, module in (("pycuda", pycuda), ("pycuda.driver", pycuda.driver), ("pycuda.autoinit", pycuda)):
        monkeypatch.setitem(sys.modules, name, module)
    before = set(sys.modules)
    try:
        from nni.compression.quantization_speedup import integrated_tensorrt

        yield integrated_tensorrt
    finally:
        for name in set(sys.modules) - before:
            if name.startswith("nni.compression.quantization_speedup"):
                del sys.modules[name]


class Tensor:
    """An ``ITensor`` as far as the backend touches it."""

    def __init__(self, name: str) -> None:
        self.name, self.dynamic_range = name, None


class Layer:
    """An ``ILayer`` with one input and one output."""

    def __init__(self, name: str, source: Tensor, kind: str = "") -> None:
        self.name, self.type = name, kind
        self.source, self.target = source, Tensor(f"{name}_output")
        self.precision = self.output_type = None
        self.num_inputs = self.num_outputs = 1

    def get_input(self, number: int) -> Tensor:
        return self.source

    def get_output(self, number: int) -> Tensor:
        return self.target

    def get_output_type(self, number: int) -> Any:
        return self.output_type

    def set_output_type(self, number: int, kind: Any) -> None:
        self.output_type = kind


def chain(names: list[str]) -> Any:
    layers: list[Layer] = []
    for name in names:
        layers.append(Layer(name, layers[-1].target if layers else Tensor("image")))
    return types.SimpleNamespace(
        num_layers=len(layers), get_layer=lambda number: layers[number], get_input=lambda number: layers[0].source
    )


def plain_chain() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    for name in ("0", "2"):
        quantize(network, name, "pams", 8)
    return calibrated(network, photo(48))


def test_nnis_backend_reads_it(backend: Any, capsys: pytest.CaptureFixture[str]) -> None:
    network: Any = plain_chain()
    flat = nni_tensorrt_config(network)
    backend.valid_config(flat)
    graph = chain(["0", "2"])
    backend.config_network_precision(graph, flat)
    assert "dynamic ranges" in capsys.readouterr().out
    for number, name in enumerate(("0", "2")):
        layer, alpha = graph.get_layer(number), network.get_submodule(name).input_quantizer.alpha.item()
        assert layer.precision == "int8"
        assert layer.source.dynamic_range == pytest.approx((-alpha, alpha))
        grid = network.get_submodule(name).weight_quantizer.grid(network.get_submodule(name).weight)
        assert flat[name]["max_weight"] == pytest.approx(127 * grid.scale) == -flat[name]["min_weight"]


def test_output_and_linear_layers(backend: Any) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    quantizer = srq_nni.PAMSQuantizer(
        network,
        [{"op_types": ["Linear"], "target_names": ["_input_", "weight", "_output_"], "quant_dtype": "int8"}],
    )
    flat = nni_tensorrt_config(quantizer.get_calibration_config(), network)
    assert set(flat["1"]) == {
        *("input_bits", "tracked_min_input", "tracked_max_input"),
        *("output_bits", "tracked_min_output", "tracked_max_output"),
        *("weight_bits", "min_weight", "max_weight"),
    }
    backend.valid_config(flat)
    layer, constant = Layer("Gemm_1", Tensor("x")), Layer("constant", Tensor("w"), "constant")
    operands = [layer.source, constant.target]
    layer.get_input = operands.__getitem__  # type: ignore[method-assign]
    backend._handle_gemm(layer, flat["1"], {constant.target.name: constant}, {})
    assert constant.target.dynamic_range == (flat["1"]["min_weight"], flat["1"]["max_weight"])
    backend.apply_precision_to_layer(other := Layer("1", Tensor("y")), flat["1"])
    assert other.target.dynamic_range == (flat["1"]["tracked_min_output"], flat["1"]["tracked_max_output"])
    assert other.output_type == "int8"


def test_a_config_and_its_network_give_the_same() -> None:
    from basicsr.archs.edsr_arch import EDSR

    torch.manual_seed(0)
    model = EDSR(3, 3, num_feat=8, num_block=1, upscale=2, rgb_mean=(0, 0, 0))
    quantizer = srq_nni.PAMSQuantizer(model, srq_nni.config_list(model, "pams", 8))
    of_network = nni_tensorrt_config(quantizer.quantized_network())
    config = quantizer.get_calibration_config()
    of_config = nni_tensorrt_config(config, quantizer.unwrap_model())
    assert set(of_network) == set(of_config) == {"body.0.conv1", "body.0.conv2"}
    for name, entry in of_network.items():
        assert entry == pytest.approx(of_config[name])


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            lambda: edsr("pams", 4),
            "'_input_0' of 'body.0.conv1' has 4 bits, and NNI's TensorRT backend makes integers",
        ),
        (
            lambda: quantized("EDSR", "pams", 8, "paper", weight_range="learned_per_channel"),
            "'weight' of 'body.0.conv1' has a scale for each channel, and NNI's TensorRT backend takes one range for",
        ),
        (lambda: edsr("ddtb", 8), "'_input_0' of 'body.0.conv1' has codes from -"),
        (
            lambda: quantized("EDSR", "pams", 8, "deploy"),
            "'body.0.branch' is of type Identity, and NNI's TensorRT backend knows Conv2d, Linear, ReLU, ReLU6, Max",
        ),
        (
            lambda: quantized("EDSR", "ddtb", 8, "paper", gated=True),
            "'_input_0' of 'body.0.conv1' has a gate, and NNI's TensorRT backend knows constant ranges only",
        ),
    ],
)
def test_what_that_backend_cannot_express(network: Any, message: str) -> None:
    with pytest.raises(ExportError) as error:
        nni_tensorrt_config(network())
    assert str(error.value).startswith(message)
    assert str(error.value).endswith("; use srq_nni.ModelSpeedupTensorRT, which writes Q/DQ nodes")


def test_configs_that_are_none() -> None:
    entry = {"scale": 0.1, "quant_bits": 8, "quant_min": -127, "quant_max": 127}
    for config, message in (
        ({}, "there is no quantized layer; give a calibration_config or a network with quantizers"),
        (
            {"a": {"_input_1": entry}},
            "target '_input_1' of 'a' is unknown to NNI's TensorRT backend, which knows weight, _input_0, _output_0",
        ),
        (
            {"a": {"weight": {"scale": 0.1}}},
            "the entry of 'weight' of 'a' lacks 'quant_min'; give a calibration_config of PAMSQuantizer "
            "or DDTBQuantizer as it was returned",
        ),
    ):
        with pytest.raises(ExportError) as error:
            nni_tensorrt_config(config)  # type: ignore[arg-type]
        assert str(error.value) == message
