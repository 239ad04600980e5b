"""From a quantized network to an ONNX graph with explicit QuantizeLinear / DequantizeLinear pairs.

The network is rebuilt without quantizers and exported in floating point; then the integers of each quantized
convolution are written around its Conv node. Exporting the fake quantization itself would give divisions and roundings
that no engine recognises.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from srq_nni.errors import ExportError
from srq_nni.quantization.layers import QuantConv2d
from srq_nni.quantization.methods import METHODS
from srq_nni.speedup.engine_rules import EngineRules
from srq_nni.speedup.integers import INT32_LIMIT, IntegerConv, read_convolutions, refuse_misplaced_quantizers
from srq_nni.speedup.lazy import import_or_explain
from srq_nni.speedup.qdq import QDQWriter

FORMAT_VERSION = 1
OPSET = 17
INPUT, OUTPUT = "input", "output"


def build_graph(
    model: nn.Module,
    rules: EngineRules,
    *,
    metadata: Mapping[str, str] | None = None,
    integer_bias: bool = False,
    sample: torch.Tensor | None = None,
) -> tuple[Any, dict[str, IntegerConv]]:
    """Return an ``onnx.ModelProto`` for ``rules`` and the integers it holds, by module path. ``model`` is unchanged.

    Input ``input`` and output ``output`` are float32 (batch, channels, height, width); all but the channels are free.

    Args:
        model: network with ``QuantConv2d`` layers.
        rules: what the engine accepts.
        metadata: further entries of ``metadata_props``, such as the wiring.
        integer_bias: write biases as int32 on the grid of the accumulator.
        sample: input to trace with, (N, C, H, W); by default zeros of size 32 with the channels of the first
            convolution.

    Raises:
        ExportError: if the onnx package is missing, a quantizer cannot be written, or the network cannot be traced.
    """
    onnx = import_or_explain("onnx", "onnx")
    refuse_misplaced_quantizers(model)
    network = copy.deepcopy(model).float().cpu().eval()
    convolutions = read_convolutions(network, integer_bias=integer_bias)
    for integers in convolutions.values():
        check_representable(integers)
    entries = {"srq_format": str(FORMAT_VERSION), "engine": rules.name, **_describe(network, convolutions)}
    entries.update(metadata or {})
    weights = remove_quantizers(network, convolutions)
    proto = onnx.load_model_from_string(float_graph(network, sample))
    QDQWriter(proto, rules).write(convolutions, weights)
    onnx.helper.set_model_props(proto, entries)
    proto.producer_name = "srq-nni"
    proto = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    onnx.checker.check_model(proto, full_check=True)
    return proto, convolutions


def check_representable(integers: IntegerConv) -> None:
    """Check that all codes of a convolution fit int8 and its accumulator int32.

    Raises:
        ExportError: names the layer, the codes and the way out.
    """
    for kind, grid in (("input", integers.input), ("weight", integers.weight)):
        if grid is not None and not grid.fits_int8:
            raise ExportError(
                f"the {kind} of '{integers.name}' has codes from {grid.minimum} to {grid.maximum} at {grid.bits} bits, "
                "and engines take int8 (-128 to 127) with zero point 0; use 7 bits or fewer for DDTB, or PAMS at 8 bits"
            )
    if integers.bound >= INT32_LIMIT:
        raise ExportError(
            f"the accumulator of '{integers.name}' can reach {integers.bound}, beyond int32 ({INT32_LIMIT}); "
            "use fewer bits for this layer"
        )


def remove_quantizers(network: nn.Module, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Make every ``QuantConv2d`` a plain convolution, in place; return the weights of ``names``.

    The weights are replaced by constants that all differ, since the exporter merges parameters of equal values.
    """
    weights = {}
    for index, name in enumerate(names):
        weight = network.get_submodule(name).weight
        assert isinstance(weight, torch.Tensor)
        weights[name] = weight.detach()
        network.get_submodule(name).weight = nn.Parameter(torch.full_like(weight, index + 1.5))
    for module in network.modules():
        if isinstance(module, QuantConv2d):
            module.input_quantizer = module.weight_quantizer = None
    return weights


def float_graph(network: nn.Module, sample: torch.Tensor | None) -> bytes:
    """Return the serialized float graph. BatchNorm is not folded, which would change quantized weights."""
    if sample is None:
        channels = next(module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d))
        sample = torch.zeros(1, channels, 32, 32)
    spatial = {INPUT: {0: "batch", 2: "height", 3: "width"}, OUTPUT: {0: "batch", 2: "out_height", 3: "out_width"}}
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
            path = Path(folder) / "float.onnx"
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (sample,),
                path,
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes=spatial,
                training=torch.onnx.TrainingMode.PRESERVE,
            )
            return path.read_bytes()
    except (RuntimeError, TypeError, ValueError) as error:
        raise ExportError(
            f"torch.onnx cannot trace the network with an input of shape {tuple(sample.shape)}: {error}; "
            "give a sample that the network accepts"
        ) from error


def _describe(model: nn.Module, convolutions: Mapping[str, IntegerConv]) -> dict[str, str]:
    """Return method and bits of the network as metadata entries; several values are joined by commas."""
    methods = {
        name
        for name, method in METHODS.items()
        for module in model.modules()
        if type(module) in (method.activation, method.weight)
    }
    weights = {layer.weight.bits for layer in convolutions.values() if layer.weight is not None}
    inputs = {layer.input.bits for layer in convolutions.values() if layer.input is not None}
    return {
        "method": ",".join(sorted(methods)),
        "weight_bits": ",".join(map(str, sorted(weights))),
        "activation_bits": ",".join(map(str, sorted(inputs))),
    }
