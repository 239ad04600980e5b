"""What a trained quantizer is, in NNI's calibration_config, and networks rebuilt from it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from nni.compression.base.target_space import QuantizationTargetSpace
from nni.compression.base.wrapper import ModuleWrapper
from torch import nn

from srq_nni.compression.blocks import expose_sites, follow_released_order
from srq_nni.compression.wrapper import quantizer_of
from srq_nni.errors import OptionError, SRQError, did_you_mean
from srq_nni.quantization.activation import ActivationQuantizer, DDTBActivation
from srq_nni.quantization.gate import Gate
from srq_nni.quantization.grid import IntegerGrid, along_channels, scale_of
from srq_nni.quantization.layers import attach_quantizer
from srq_nni.quantization.methods import METHODS
from srq_nni.quantization.weight import GridWeight, WeightQuantizer

CalibrationConfig = Mapping[str, Mapping[str, Mapping[str, Any]]]


def codes_of(space: QuantizationTargetSpace, quantizer: nn.Module) -> tuple[float | tuple[float, ...], int, int]:
    """Return (scale, smallest code, largest code) of a quantizer on its target; a gate is left out of it."""
    if isinstance(quantizer, WeightQuantizer):
        grid = quantizer.grid(space.target)
        return grid.scale, grid.minimum, grid.maximum
    assert isinstance(quantizer, ActivationQuantizer)
    return quantizer.static_codes()


@torch.no_grad()
def describe(space: QuantizationTargetSpace, quantizer: nn.Module) -> None:
    """Write scale, zero point and range of the grid where NNI keeps them, as tensors of the target's device.

    They are 0-d; scale and range of a weight with one for each channel broadcast with it, (C, 1, ..).
    """
    scale, low, high = codes_of(space, quantizer)
    device = next((t.device for t in quantizer.state_dict().values()), None)
    device = space.target.device if device is None else device
    space.scale = along_channels(torch.tensor(scale, device=device), space.target)
    space.zero_point = torch.tensor(0.0, device=device)
    space.tracked_min, space.tracked_max = space.scale * low, space.scale * high


def entry_of(space: QuantizationTargetSpace, quantizer: nn.Module) -> dict[str, Any]:
    """Return what a calibration_config says of a target beyond NNI's own keys."""
    _, low, high = codes_of(space, quantizer)
    method = next(m for m in METHODS.values() if type(quantizer) in (m.activation, m.weight))
    options = method.weight_options if isinstance(quantizer, WeightQuantizer) else method.activation_options
    entry: dict[str, Any] = {
        "quantizer": method.name,
        "options": {key: getattr(quantizer, key) for key in options},
        "quant_min": low,
        "quant_max": high,
    }
    if isinstance(quantizer, ActivationQuantizer):
        entry["bounds"] = torch.cat([bound.detach().cpu() for bound in quantizer.bounds()])
        entry["state"] = {key: value.detach().cpu().clone() for key, value in quantizer.state_dict().items()}
    elif isinstance(quantizer, WeightQuantizer) and quantizer.log_factor is not None:
        entry["log_factor"] = float(quantizer.log_factor.detach())
    return entry


def check_targets(config: CalibrationConfig, wrappers: Mapping[str, ModuleWrapper]) -> None:
    """Check that every target of a calibration_config is quantized here, and that it has an entry.

    Raises:
        OptionError: names the first that is not.
    """
    for module, targets in config.items():
        if module not in wrappers:
            near = did_you_mean(module, wrappers) or "; make the quantizer with the same config_list"
            raise OptionError(f"calibration_config: no module '{module}' is quantized here{near}")
        spaces = wrappers[module].quantization_target_spaces
        if not isinstance(targets, Mapping) or not all(isinstance(entry, Mapping) for entry in targets.values()):
            raise OptionError(
                f"calibration_config: '{module}' has no block of targets with an entry each; give it as it was returned"
            )
        for target in targets:
            if target not in spaces:
                raise OptionError(
                    f"calibration_config: target '{target}' of '{module}' is not quantized here; "
                    f"make the quantizer with the same config_list{did_you_mean(target, spaces)}"
                )


def check_entry(
    space: QuantizationTargetSpace, quantizer: nn.Module | None, entry: Mapping[str, Any], where: str
) -> None:
    """Check that ``restore``, or NNI for a target of another quantizer, can take an entry; nothing is changed.

    Raises:
        OptionError: if the entry is of another quantizer or bit width, of another weight, or damaged.
    """
    here: dict[str, Any] = {key: getattr(space, key) for key in ("quant_bits", "quant_dtype", "quant_scheme")}
    needed = ["scale", "zero_point"]
    if quantizer is not None:
        own = entry_of(space, quantizer)
        here = {"quantizer": own["quantizer"], "quant_bits": space.quant_bits, "options": own["options"]}
        needed = ["scale"] if isinstance(quantizer, WeightQuantizer) else ["state"]
    for key, value in here.items():
        if entry.get(key) != value:
            raise OptionError(
                f"calibration_config: {where} has {key}: {entry.get(key)!r} and the quantizer {value!r}; "
                "make them equal"
            )
    with _damage_named(where):
        for key in needed:
            entry[key]
        if quantizer is None:
            return
        twin = copy.deepcopy(quantizer)
        restore(twin, entry)
        if not isinstance(twin, WeightQuantizer):
            return
        given, scale = (torch.tensor(each).flatten() for each in (scale_of(entry["scale"]), codes_of(space, twin)[0]))
    if given.shape != scale.shape:
        raise OptionError(
            f"calibration_config: {where} has {len(given)} scales and its weight {len(scale)} channels; make them equal"
        )
    differing = (~torch.isclose(given, scale, rtol=1e-5, atol=0)).nonzero().flatten().tolist()
    if differing:
        given, scale = given[differing[0]], scale[differing[0]]
        raise OptionError(
            f"calibration_config: {where} has scale {float(given):.6g} and its weight gives {float(scale):.6g}; "
            "load the trained weights first, or rebuild an unwrapped network with srq_nni.quantized_network"
        )


def restore(quantizer: nn.Module, entry: Mapping[str, Any]) -> None:
    """Put an activation's bounds and gate, or the factor of a weight's step, back; ``check_entry`` says if it can."""
    if isinstance(quantizer, WeightQuantizer):
        for factor in quantizer.bounds():
            factor.data.fill_(float(entry.get("log_factor", 0.0)))
        return
    assert isinstance(quantizer, ActivationQuantizer)
    _load(quantizer, entry["state"])


def _load(quantizer: ActivationQuantizer, state: Mapping[str, torch.Tensor]) -> None:
    gate = state.get("gate.reduce.weight")
    if isinstance(quantizer, DDTBActivation):
        if gate is not None and quantizer.gate is None:
            quantizer.add_gate(Gate(gate.shape[1]))
        elif gate is None:
            quantizer.gate = None
    quantizer.load_state_dict(dict(state))


@contextmanager
def _damage_named(where: str) -> Iterator[None]:
    """Turn what a damaged entry makes of the code that reads it into one sentence."""
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError, SRQError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise OptionError(f"calibration_config: {where} is damaged ({reason}); give it as it was returned") from None


def quantized_network(model: nn.Module, calibration_config: CalibrationConfig) -> nn.Module:
    """Return a copy of a plain network with the quantizers of a calibration_config inside, in eval mode.

    Args:
        model: network as ``unwrap_model`` returns it: plain layers, weights on their grids. Unchanged.
        calibration_config: as ``compress`` or ``get_calibration_config`` returned it.

    Raises:
        OptionError: if an entry does not come from a quantizer of srq-nni, or a weight is not on its grid.
        QuantizationError: if the network has no such module.
    """
    network = expose_sites(copy.deepcopy(model))
    for module, targets in calibration_config.items():
        for target, entry in targets.items():
            quantizer = _made(entry, f"target '{target}' of '{module}'")
            attach_quantizer(network, module, target, quantizer)
            if isinstance(quantizer, GridWeight) and not quantizer.holds(network.get_parameter(f"{module}.weight")):
                raise OptionError(
                    f"calibration_config: the weight of '{module}' is not on the grid of its entry; "
                    "give the network that unwrap_model() returned"
                )
    return follow_released_order(network).eval()


def _made(entry: Mapping[str, Any], where: str) -> nn.Module:
    if entry.get("quantizer") not in METHODS:
        raise OptionError(
            f"calibration_config: {where} is not of PAMS or DDTB; give one from PAMSQuantizer or DDTBQuantizer"
        )
    with _damage_named(where):
        if "state" not in entry:
            low, high = int(entry["quant_min"]), int(entry["quant_max"])
            bits, scale = entry["quant_bits"], scale_of(entry["scale"])
            midrise = METHODS[entry["quantizer"]].weight(bits, **entry["options"]).midrise
            return GridWeight(IntegerGrid(scale, low, high, bits, midrise=midrise))
        quantizer = METHODS[entry["quantizer"]].activation(entry["quant_bits"], **entry["options"])
        _load(quantizer, entry["state"])
    return quantizer


def with_live_quantizers(model: nn.Module, wrappers: Mapping[str, ModuleWrapper]) -> nn.Module:
    """Return a plain copy of a wrapped network with the quantizers inside its layers instead, in eval mode.

    Unlike ``quantized_network`` it keeps the weights in floating point, so that it can go on training.
    """
    twin = copy.deepcopy(model)
    found = []
    for module in list(twin.modules()):
        wrapper = getattr(module, "_nni_wrapper", None)
        if wrapper is None:
            continue
        spaces = wrapper.quantization_target_spaces
        weights = {name: spaces[name].target for name in spaces if isinstance(spaces[name].target, nn.Parameter)}
        found += [(wrapper.name, target, quantizer_of(space)) for target, space in spaces.items()]
        wrapper.unwrap()
        for name, weight in weights.items():
            getattr(module, name).data.copy_(weight.detach())
    for name, target, quantizer in found:
        if quantizer is None:
            raise OptionError(f"target '{target}' of '{name}' is quantized by a quantizer that srq-nni cannot export")
        attach_quantizer(twin, name, target, quantizer)
    return twin.eval()
