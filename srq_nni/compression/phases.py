"""What happens at which iteration: calibration, static bounds, gates. All of it follows from the iteration number.

PAMS: up to ``calibration_iters`` the network trains while its bounds follow the running statistic; then they train.
DDTB: up to ``calibration_iters`` it only watches float activations, without an update; then bounds start, the layers
with the greatest dynamic intensity get gates, and for ``static_iters`` the gates are held at zero logits by a
regulariser; from then on they scale the bounds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from srq_nni.compression.options import QuantizationOptions
from srq_nni.quantization.activation import NO_CHANNELS, DDTBActivation, Mode
from srq_nni.quantization.calibration import choose_dynamic_layers
from srq_nni.quantization.gate import Gate
from srq_nni.quantization.grid import MAX_BITS
from srq_nni.quantization.layers import activation_quantizers, set_bounds_from_statistics, set_mode
from srq_nni.quantization.weight import WeightQuantizer

Phase = Literal["observe", "calibrate", "static", "final"]


def phase_at(iteration: int, options: QuantizationOptions) -> Phase:
    """Return the phase of an iteration, counted from 1."""
    calibrating = iteration <= options.calibration_iters
    if options.quantizer != "ddtb":
        return "calibrate" if calibrating else "final"
    if calibrating:
        return "observe"
    return "static" if iteration <= options.calibration_iters + options.static_iters else "final"


def enter_phase(model: nn.Module, phase: Phase) -> None:
    """Put every quantizer of ``model`` into ``phase``; outside ``observing`` the phase ``observe`` is plain float."""
    modes: dict[Phase, Mode] = {"observe": "float", "calibrate": "calibrate", "static": "quantize", "final": "quantize"}
    set_mode(model, modes[phase])
    for quantizer in ddtb_quantizers(model).values():
        if quantizer.gate is not None:
            quantizer.apply_gate(phase == "final")


def start_observing(model: nn.Module, weights: str = "float") -> None:
    """Let the quantizers of ``model`` record activations, which they return as they are.

    Args:
        model: network, or list of its quantizers.
        weights: ``float`` or ``quantized``, as the option ``observed_weights``.
    """
    set_mode(model, "observe")
    for module in model.modules():
        if isinstance(module, WeightQuantizer):
            module.enabled = weights == "quantized"


@contextmanager
def observing(model: nn.Module, weights: str = "float") -> Iterator[None]:
    """Let the quantizers record activations, in eval mode and without gradients; restores float and training.

    Validation runs outside this block, so that its images never enter the statistics.

    Args:
        model: network with quantizers.
        weights: see ``start_observing``.
    """
    model.eval()
    start_observing(model, weights)
    try:
        with torch.no_grad():
            yield
    finally:
        set_mode(model, "float")
        model.train()


def start_bounds_and_gates(model: nn.Module, ratio: float) -> list[str]:
    """Set DDTB's bounds from what was observed, add the gates, and return the names of the gated quantizers.

    Args:
        model: network that has observed.
        ratio: share of the quantizers that get a gate; see ``gate_groups``.
    """
    set_bounds_from_statistics(model)
    quantizers = ddtb_quantizers(model)
    chosen = choose_gated(model, ratio)
    for quantizer in (quantizers[name] for name in chosen):
        quantizer.add_gate(Gate(int(quantizer.channels), start=quantizer.gate_start))
    return chosen


def choose_gated(model: nn.Module, ratio: float) -> list[str]:
    """Return the names of the DDTB quantizers that training gives a gate: those of greatest dynamic intensity.

    Quantizers that observed nothing, or anything but images (N, C, H, W) of one C, get none and do not count for the
    share; where none is left, a warning says so. Arguments as for ``start_bounds_and_gates``.
    """
    chosen: list[str] = []
    for share, quantizers in _shares(model, ratio).items():
        intensity = {name: q.intensity.intensity for name, q in quantizers.items() if q.channels > 0}
        chosen += choose_dynamic_layers(intensity, share)
        if share > 0 and not intensity:
            logging.getLogger(__name__).warning(
                "dynamic_ratio: %s gives no gate: none of its %d quantizers observed images (N, C, H, W) of one number "
                "of channels; give dynamic_ratio: 0, or quantize inputs of convolutions.",
                share,
                len(quantizers),
            )
    return chosen


def gate_groups(model: nn.Module, ratio: float) -> dict[float, dict[str, DDTBActivation]]:
    """Return share -> quantizers by name, among which that share gets a gate.

    Quantizers of 8 bits (a head, a tail) get none beside narrower ones, unless they have a share of their own: their
    codes would not fit a byte. Nor do those of linear layers, and those that observed anything but images (N, C, H, W)
    of one C.

    Args:
        model: network with quantizers.
        ratio: share of those that have none of their own (``dynamic_ratio`` in an entry of a config_list).
    """
    groups = _shares(model, ratio)
    return {share: {n: q for n, q in group.items() if q.channels != NO_CHANNELS} for share, group in groups.items()}


def _shares(model: nn.Module, ratio: float) -> dict[float, dict[str, DDTBActivation]]:
    """Return share -> all quantizers that it counts for, whether a gate fits them or not."""
    quantizers = ddtb_quantizers(model)
    narrow = any(quantizer.bits < MAX_BITS for quantizer in quantizers.values())
    groups: dict[float, dict[str, DDTBActivation]] = {}
    for name, quantizer in quantizers.items():
        if quantizer.gate_share is not None:
            groups.setdefault(quantizer.gate_share, {})[name] = quantizer
        elif quantizer.bits < MAX_BITS or not narrow:
            groups.setdefault(ratio, {})[name] = quantizer
    return groups


def gate_candidates(model: nn.Module, ratio: float) -> dict[str, DDTBActivation]:
    """Return the quantizers of ``model`` that may get a gate, by name."""
    return {name: q for share, group in gate_groups(model, ratio).items() if share > 0 for name, q in group.items()}


def gate_loss(model: nn.Module) -> torch.Tensor | None:
    """Return the mean over gated layers of the mean squared logit of the last forward pass, or None without gates."""
    logits = [q.gate_logits for q in ddtb_quantizers(model).values() if q.gate_logits is not None]
    return torch.stack([layer.square().mean() for layer in logits]).mean() if logits else None


def gate_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of all gates of ``model``."""
    return [p for q in ddtb_quantizers(model).values() if q.gate is not None for p in q.gate.parameters()]


def clear_gates(model: nn.Module) -> None:
    """Take the gates of ``model`` away, as before its bounds started."""
    for quantizer in ddtb_quantizers(model).values():
        quantizer.apply_gate(False)
        quantizer.gate = None


def ddtb_quantizers(model: nn.Module) -> dict[str, DDTBActivation]:
    """Return the DDTB quantizers of ``model`` by name."""
    return {name: q for name, q in activation_quantizers(model) if isinstance(q, DDTBActivation)}
