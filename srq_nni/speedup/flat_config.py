"""The flat config that NNI's own TensorRT 8 backend reads, for people who are tied to it.

``nni.compression.quantization_speedup`` of NNI 3.0 reads the keys of NNI 2.x, which its quantizers never write. It
makes INT8 engines without Q/DQ nodes: symmetric ranges of 8 bits for single layers, weights quantized again by TensorRT
with a scale for each channel. What that cannot say is refused here rather than changed in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from srq_nni.errors import ExportError
from srq_nni.quantization.activation import ActivationQuantizer
from srq_nni.quantization.grid import scale_of
from srq_nni.quantization.layers import QuantConv2d, QuantLinear
from srq_nni.quantization.weight import WeightQuantizer
from srq_nni.speedup.integers import is_gated, read_integers

BITS = 8
TARGETS = {"weight": "weight", "_input_0": "input", "_output_0": "output"}
SUPPORTED = (nn.Conv2d, nn.Linear, nn.ReLU, nn.ReLU6, nn.MaxPool2d)  # of its frontend, by exact type
TWINS: dict[type, type] = {QuantConv2d: nn.Conv2d, QuantLinear: nn.Linear}
WAY_OUT = "use srq_nni.ModelSpeedupTensorRT, which writes Q/DQ nodes"


@dataclass(frozen=True)
class _Site:
    module: str
    target: str
    bits: int
    scale: float | tuple[float, ...]
    low: int
    high: int
    gated: bool


def nni_tensorrt_config(
    source: Mapping[str, Mapping[str, Mapping[str, Any]]] | nn.Module, model: nn.Module | None = None
) -> dict[str, dict[str, Any]]:
    """Return the config of NNI's ``ModelSpeedupTensorRT``: {module: {weight_bits, tracked_min_input, ..}}.

    Args:
        source: calibration_config of PAMSQuantizer or DDTBQuantizer, or a network with quantizers.
        model: plain network of a calibration_config; its layers are then checked, too.

    Raises:
        ExportError: for what that backend cannot express: other widths than 8 bits, codes that are not symmetric
            (DDTB's bounds, zero points), gates, and targets other than input, output and weight of single layers.
    """
    network = source if isinstance(source, nn.Module) else model
    sites = _of_network(source) if isinstance(source, nn.Module) else _of_config(source)
    flat: dict[str, dict[str, Any]] = {}
    for site in sites:
        _check(site, network)
        short = TARGETS[site.target]
        assert isinstance(site.scale, float)
        limits = (site.scale * site.low, site.scale * site.high)
        names = (f"tracked_min_{short}", f"tracked_max_{short}") if short != "weight" else ("min_weight", "max_weight")
        entry = flat.setdefault(site.module, {})
        entry.update({f"{short}_bits": site.bits, **dict(zip(names, limits, strict=True))})
    if not flat:
        raise ExportError("there is no quantized layer; give a calibration_config or a network with quantizers")
    return flat


def _check(site: _Site, network: nn.Module | None) -> None:
    where = f"'{site.target}' of '{site.module}'"
    if site.target not in TARGETS:
        raise ExportError(f"target {where} is unknown to NNI's TensorRT backend, which knows {', '.join(TARGETS)}")
    if site.gated:
        raise ExportError(f"{where} has a gate, and NNI's TensorRT backend knows constant ranges only; {WAY_OUT}")
    if site.bits != BITS:
        raise ExportError(
            f"{where} has {site.bits} bits, and NNI's TensorRT backend makes integers of {BITS} bits only; {WAY_OUT}"
        )
    if isinstance(site.scale, tuple):
        raise ExportError(
            f"{where} has a scale for each channel, and NNI's TensorRT backend takes one range for all; {WAY_OUT}"
        )
    if site.low != -site.high:
        raise ExportError(
            f"{where} has codes from {site.low} to {site.high}, and NNI's TensorRT backend knows symmetric ranges "
            f"without a zero point only; {WAY_OUT}"
        )
    if network is None:
        return
    found = type(network.get_submodule(site.module))
    if TWINS.get(found, found) not in SUPPORTED:
        raise ExportError(
            f"'{site.module}' is of type {found.__name__}, and NNI's TensorRT backend knows "
            f"{', '.join(kind.__name__ for kind in SUPPORTED)} only; {WAY_OUT}"
        )


def _of_config(config: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[_Site]:
    for module, targets in config.items():
        for target, entry in targets.items():
            try:
                scale, low, high = scale_of(entry["scale"]), int(entry["quant_min"]), int(entry["quant_max"])
                bits = int(entry["quant_bits"])
            except (KeyError, TypeError, ValueError) as error:
                raise ExportError(
                    f"the entry of '{target}' of '{module}' lacks {error}; give a calibration_config of PAMSQuantizer "
                    "or DDTBQuantizer as it was returned"
                ) from None
            gated = any(key.startswith("gate.") for key in entry.get("state", {}))
            yield _Site(module, target, bits, scale, low, high, gated)


def _of_network(network: nn.Module) -> Iterator[_Site]:
    layers = read_integers(network).layers
    for path, quantizer in network.named_modules(remove_duplicate=False):  # one may serve several layers
        module, _, child = path.rpartition(".")
        if isinstance(quantizer, WeightQuantizer):
            grid = layers[module].weight
            assert grid is not None
            yield _Site(module, "weight", grid.bits, grid.scale, grid.minimum, grid.maximum, False)
        elif isinstance(quantizer, ActivationQuantizer):
            scale, low, high = quantizer.static_codes()
            kind = child.removesuffix("_quantizer")
            target = {"input": "_input_0", "output": "_output_0"}.get(kind, kind)
            yield _Site(module, target, quantizer.bits, scale, low, high, is_gated(quantizer))
