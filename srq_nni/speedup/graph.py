"""From a quantized network to an ONNX graph with explicit QuantizeLinear / DequantizeLinear pairs.

The network is traced in floating point with a marker where each quantizer sits; then integers are written in place of
the markers. Exporting the fake quantization itself would give divisions and roundings that no engine recognises.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from srq_nni.errors import ExportError, listing
from srq_nni.quantization.methods import METHODS
from srq_nni.speedup import markers
from srq_nni.speedup.byte_products import separate_weights
from srq_nni.speedup.double_quantizers import keep_both_roundings
from srq_nni.speedup.engine_rules import EngineRules
from srq_nni.speedup.grouped_layers import keep_from_gemm
from srq_nni.speedup.image_metadata import write_metadata
from srq_nni.speedup.integers import INT32_LIMIT, IntegerConv, IntegerNetwork, read_integers
from srq_nni.speedup.lazy import import_or_explain
from srq_nni.speedup.onnx_graph import OnnxGraph
from srq_nni.speedup.pixel_shuffle import reorder_pixel_shuffles
from srq_nni.speedup.qdq import QDQWriter
from srq_nni.speedup.shared_outputs import keep_scales
from srq_nni.speedup.sources import default_sample

OPSET = 17
INPUT, OUTPUT = "input", "output"


def build_graph(
    model: nn.Module,
    rules: EngineRules,
    *,
    metadata: Mapping[str, str] | None = None,
    integer_bias: bool | None = None,
    sample: torch.Tensor | None = None,
    traced: Any = None,
) -> tuple[Any, IntegerNetwork]:
    """Return an ``onnx.ModelProto`` for ``rules`` and the integers it holds. ``model`` is unchanged.

    Input ``input`` and output ``output`` are float32 (batch, channels, height, width); all but the channels are free.

    Args:
        model: network with quantizers.
        rules: what the engine accepts.
        metadata: further entries of ``metadata_props``, such as the wiring.
        integer_bias: write biases as int32 on the grid of the accumulator; None does as the engine wants it.
        sample: input to trace with, (N, C, H, W); by default zeros of size 32 with the channels of the first
            convolution.
        traced: what ``trace_marked`` returned for this model, where graphs of several engines are wanted.

    Raises:
        ExportError: if the onnx package is missing, a quantizer cannot be written, or the network cannot be traced.
    """
    onnx = import_or_explain("onnx", "onnx")
    network = copy.deepcopy(model).float().cpu().eval()
    integer_bias = rules.integer_bias if integer_bias is None else integer_bias
    integers = read_integers(network, integer_bias=integer_bias, sample=sample)
    for layer in integers.layers.values():
        check_accumulator(layer)
    entries = {"engine": rules.name, **_describe(network, integers)}
    entries.update(metadata or {})
    weights = {name: _weight_of(network, name) for name in integers.layers}
    proto = trace_marked(network, sample) if traced is None else copy.deepcopy(traced)
    QDQWriter(proto, rules).write(integers, weights)
    _forget_markers(proto)
    if rules.needs_output_quantizer:
        separate_weights(proto, rules)
    if rules.loses_scales:
        keep_scales(proto)
    if rules.guards_groups:
        keep_from_gemm(proto)
    if rules.merges_quantizers:
        keep_both_roundings(proto)
    reorder_pixel_shuffles(proto)
    write_metadata(proto, entries)
    proto = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    onnx.checker.check_model(proto, full_check=True)
    return proto, integers


def trace_marked(model: nn.Module, sample: torch.Tensor | None = None) -> Any:
    """Return the float graph of ``model`` with a marker for each quantizer, from which the graphs of all engines start.

    Raises:
        ExportError: if the network cannot be traced.
    """
    network = copy.deepcopy(model).float().cpu().eval()
    markers.mark(network)
    return float_graph(network, sample)


def check_accumulator(layer: IntegerConv) -> None:
    """Check that the accumulator of a layer fits int32.

    Raises:
        ExportError: names the layer, the sum and the way out.
    """
    if layer.bound >= INT32_LIMIT:
        raise ExportError(
            f"the accumulator of '{layer.name}' can reach {layer.bound}, beyond int32 ({INT32_LIMIT}); "
            "use fewer bits for this layer"
        )


def float_graph(network: nn.Module, sample: torch.Tensor | None) -> Any:
    """Return the float graph, an ``onnx.ModelProto``. BatchNorm is not folded, which would change quantized weights."""
    onnx = import_or_explain("onnx", "onnx")
    sample = default_sample(network) if sample is None else sample
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
            proto = onnx.load(path)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ExportError(
            f"torch.onnx cannot trace the network with an input of shape {tuple(sample.shape)}: {error}; "
            "give a sample that the network accepts"
        ) from error
    _unshare_constants(proto.graph)
    _drop_factors_of_one(proto.graph)
    return proto


def _unshare_constants(graph: Any) -> None:
    """Give each layer constants of its own, in place.

    The exporter stores equal ones (fresh biases) once and puts an Identity before the other layers; TensorRT wants
    biases that are constants themselves.
    """
    constants = {constant.name: constant for constant in graph.initializer}
    shared = [node for node in graph.node if node.op_type == "Identity" and node.input[0] in constants]
    for node in shared:
        graph.initializer.add().CopyFrom(constants[node.input[0]])
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)


def _drop_factors_of_one(graph: Any) -> None:
    """Take multiplications by 1 out, in place, such as a block with ``res_scale: 1.0`` has.

    They change no value, and an engine would not fuse the convolution before one with the quantizer behind it.
    """
    known = OnnxGraph(graph)
    sources: dict[str, str] = {}
    for node in known.nodes:
        node.input[:] = [sources.get(name, name) for name in node.input]
        if node.op_type == "Mul" and node.output[0] not in known.outputs:
            factors = [name for name in node.input if not _is_one(known.constant(name))]
            if len(factors) == 1:
                sources[node.output[0]] = factors[0]
                graph.node.remove(node)


def _is_one(constant: np.ndarray | None) -> bool:
    return (
        constant is not None and constant.dtype == np.float32 and constant.shape in ((), (1,)) and bool(constant == 1)
    )


def _weight_of(network: nn.Module, name: str) -> torch.Tensor:
    return network.get_submodule(name).get_parameter("weight").detach().clone()


def _forget_markers(proto: Any) -> None:
    """Drop the operator set of the markers, none of which is left."""
    left = [node.name for node in proto.graph.node if node.domain == markers.DOMAIN]
    if left:
        raise ExportError(f"the graph still has unwritten quantizers: {listing(left, 3)}; please report this network")
    known = [entry for entry in proto.opset_import if entry.domain != markers.DOMAIN]
    del proto.opset_import[:]
    proto.opset_import.extend(known)


def _describe(model: nn.Module, integers: IntegerNetwork) -> dict[str, str]:
    """Return method and bits of the network as metadata entries; several values are joined by commas."""
    methods = {
        name
        for name, method in METHODS.items()
        for module in model.modules()
        if type(module) in (method.activation, method.weight)
    }
    weights = {layer.weight.bits for layer in integers.layers.values() if layer.weight is not None}
    inputs = {activation.bits for activation in integers.activations.values()}
    return {
        "method": ",".join(sorted(methods)),
        "weight_bits": ",".join(map(str, sorted(weights))),
        "activation_bits": ",".join(map(str, sorted(inputs))),
    }
