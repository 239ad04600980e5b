"""A network that starts its activation bounds itself, for training loops that know nothing of quantization.

``QuantSRModel`` runs phases by the number of the iteration. Where a stock model of BasicSR trains instead, all it does
is to run, average, save and load the network; so the network counts its own training batches and takes part in these
four acts by hooks:

- run: the first training batches calibrate, that is, the bounds follow the statistics while the weights train.
- average: ``model_ema`` averages parameters from the moment that the network exists, so the average of a bound holds on
  to the value before calibration. ``bounds_started`` is averaged along and thus becomes the share of the real values in
  that average; what the average computes, it computes with the bounds without the rest.
- save: two entries tell that a file is from before the end of this; later the keys are those of any quantized network.
  ``without_calibration`` is for readers that know no such entries.
- load: a float state dict fits, and the quantizers keep what they have; stored gates are added.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from srq_nni.checkpoint import is_quantizer_key
from srq_nni.errors import CheckpointError, OptionError, listing
from srq_nni.quantization.activation import INITIAL_BOUND
from srq_nni.quantization.layers import activation_quantizers, add_stored_gates, set_mode

BATCHES, STARTED = "calibrated_batches", "bounds_started"
BOUNDS = ("_quantizer.alpha", "_quantizer.upper", "_quantizer.lower")
COMPLETE = 1 - 1e-6  # of an average; the rest, at most 1e-6 of a bound, is left in it


@dataclass
class Calibration:
    """What a network knows about its calibration beside its tensors.

    Attributes:
        name: of the network, for messages.
        batches: number of training batches that calibrate.
        starts: the bounds before calibration.
        seen: training batches so far, at most ``batches``; None until they are read from the buffer.
        finished: training goes on with quantizers that calibrate no more.
        raw: the bounds as averaged, while a forward pass runs with better ones.
    """

    name: str
    batches: int
    starts: list[float]
    seen: int | None = None
    finished: bool = False
    warned: bool = False
    raw: list[torch.Tensor] = field(default_factory=list)


def calibrate_itself(net: nn.Module, batches: int, name: str) -> nn.Module:
    """Make ``net``, which has quantizers, calibrate their bounds on its first training batches; return it.

    Args:
        net: network with quantizers.
        batches: number of forward passes in training mode, with gradients, that calibrate.
        name: of the network, for messages.
    """
    net.register_buffer(BATCHES, torch.zeros((), dtype=torch.int64))
    # In double precision, or the average of ones would never come near one. It asks for no gradient.
    net.register_parameter(STARTED, nn.Parameter(torch.zeros((), dtype=torch.float64), requires_grad=False))
    net.__dict__["calibration"] = Calibration(name, batches, [float(bound.detach()) for bound in _bounds(net)])
    net.register_forward_pre_hook(_before_forward)
    net.register_forward_hook(_after_forward, always_call=True)
    net.register_state_dict_post_hook(_hide_what_is_over)
    net.register_load_state_dict_pre_hook(_accept_float_weights)
    return net


def without_calibration(state: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the state dict of such a network as any quantized network has it: bounds of an average made whole.

    Args:
        state: names without a prefix; that of any other network is returned as it is.
        path: of its file, for the message.

    Raises:
        CheckpointError: if the bounds never saw an image.
    """
    if BATCHES not in state and STARTED not in state:
        return dict(state)
    share = float(state.get(STARTED, 1.0))
    if share <= 0:
        raise CheckpointError(
            f"checkpoint '{path}' was saved before the first training batch, so its bounds are not set; "
            "give a later one"
        )
    rest = {key: value for key, value in state.items() if key not in (BATCHES, STARTED)}
    for key, value in rest.items():
        if share < COMPLETE and key.endswith(BOUNDS):
            start = -INITIAL_BOUND if key.endswith(".lower") else INITIAL_BOUND
            rest[key] = _whole(value, start, share)
    return rest


def _bounds(net: nn.Module) -> list[nn.Parameter]:
    return [bound for _, quantizer in activation_quantizers(net) for bound in quantizer.bounds()]


def _of(net: nn.Module) -> Calibration:
    calibration: Calibration = net.__dict__["calibration"]
    return calibration


def _started_in_part(net: nn.Module) -> bool:
    return 0 < float(net.get_parameter(STARTED)) < COMPLETE


def _before_forward(net: nn.Module, args: tuple[Any, ...]) -> None:
    if not net.training:
        _show_average(net)
    elif torch.is_grad_enabled() and not _of(net).finished:
        _calibrate(net)


@torch.no_grad()
def _calibrate(net: nn.Module) -> None:
    """Enter the phase of the next training batch."""
    calibration = _of(net)
    if getattr(net, "_is_replica", False):
        raise OptionError(
            f"{calibration.name} runs on several GPUs in one process (DataParallel), whose copies lose calibration; "
            "start one process per GPU with --launcher pytorch"
        )
    if calibration.seen is None:
        calibration.seen = min(int(net.get_buffer(BATCHES)), calibration.batches)
    if calibration.seen < calibration.batches:
        set_mode(net, "calibrate")
        calibration.seen += 1
        net.get_buffer(BATCHES).fill_(calibration.seen)
    else:
        if _started_in_part(net):  # training starts from an average
            _set_bounds(net, _without_start(net))
        set_mode(net, "quantize")
        calibration.finished = True
    net.get_parameter(STARTED).fill_(1)


@torch.no_grad()
def _show_average(net: nn.Module) -> None:
    calibration = _of(net)
    if _started_in_part(net):
        calibration.raw = [bound.detach().clone() for bound in _bounds(net)]
        _set_bounds(net, _without_start(net))
    elif calibration.starts and not calibration.warned and float(net.get_parameter(STARTED)) == 0:
        calibration.warned = True
        logging.getLogger(__name__).warning(
            "%s runs with bounds that never saw an image; train it, or load a quantized checkpoint.", calibration.name
        )


@torch.no_grad()
def _after_forward(net: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    calibration = _of(net)
    if calibration.raw:
        raw, calibration.raw = calibration.raw, []
        _set_bounds(net, raw)


def _whole(average: torch.Tensor, start: float, share: float) -> torch.Tensor:
    """Return what was averaged with ``start`` if it makes up ``share`` of ``average``."""
    return start + (average - start) / share


def _without_start(net: nn.Module) -> list[torch.Tensor]:
    """Return the average of the bounds since calibration began: they are that and their start, weighted by a share."""
    share = float(net.get_parameter(STARTED))
    return [_whole(bound, start, share) for bound, start in zip(_bounds(net), _of(net).starts, strict=True)]


def _set_bounds(net: nn.Module, values: Iterable[torch.Tensor]) -> None:
    for bound, value in zip(_bounds(net), values, strict=True):
        bound.copy_(value)


def _hide_what_is_over(net: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Leave out what a loaded network would assume: that it is calibrated."""
    share, batches = float(net.get_parameter(STARTED)), int(net.get_buffer(BATCHES))
    if batches == _of(net).batches or (share > 0 and batches == 0):  # an average counts no batches
        del state[prefix + BATCHES]
    if share >= COMPLETE:
        del state[prefix + STARTED]


def _accept_float_weights(
    net: nn.Module,
    state: dict[str, Any],
    prefix: str,
    metadata: dict[str, Any],
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Complete a state dict that is about to be loaded, or refuse it.

    Raises:
        CheckpointError: if it holds a part of the quantizers, those of other bits, or not just the weights. That is so
            with ``strict_load_g: false`` too, of which a network is not told.
    """
    calibration = _of(net)
    given = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    quantized = any(is_quantizer_key(key) for key in given)
    added = add_stored_gates(net, given) if quantized else []
    own = net.state_dict()
    try:
        _check_quantizers(calibration.name, own if quantized else {}, given)
        _check_weights(calibration.name, own, given)
    except CheckpointError:
        for quantizer in added:
            quantizer.gate = None
        raise
    if quantized:
        state.setdefault(prefix + BATCHES, torch.tensor(calibration.batches))
        state.setdefault(prefix + STARTED, torch.tensor(1.0))
    else:
        kept = {key: value for key, value in own.items() if is_quantizer_key(key)}
        kept |= {BATCHES: net.get_buffer(BATCHES), STARTED: net.get_parameter(STARTED)}
        state.update({prefix + key: value for key, value in kept.items()})
    calibration.seen, calibration.finished = None, False


def _check_quantizers(name: str, own: dict[str, Any], given: dict[str, Any]) -> None:
    wanted = [key for key in own if is_quantizer_key(key)]
    lacking = [key for key in wanted if key not in given]
    foreign = [key for key in given if is_quantizer_key(key) and key not in own]
    if own and (lacking or foreign):
        raise CheckpointError(
            f"the checkpoint does not fit {name}: it {_difference(lacking, foreign)}; "
            "give one that was trained with the same quantizer, wiring and config_list, or a float one"
        )
    for key in wanted:
        if key.endswith(".bit_width") and int(given[key]) != int(own[key]):
            raise CheckpointError(
                f"the checkpoint does not fit {name}: {key.removesuffix('.bit_width')} was saved with "
                f"{int(given[key])} bits and the network has {int(own[key])}; make network_g: bits equal, or give a "
                "float checkpoint"
            )


def _check_weights(name: str, own: dict[str, Any], given: dict[str, Any]) -> None:
    weights = [key for key in own if not is_quantizer_key(key) and key not in (BATCHES, STARTED)]
    lacking = [key for key in weights if key not in given]
    foreign = [key for key in given if not is_quantizer_key(key) and key not in (*weights, BATCHES, STARTED)]
    if lacking or foreign:
        raise CheckpointError(
            f"the checkpoint does not fit {name}: it {_difference(lacking, foreign)}; "
            "give one of the same architecture, or the right param_key_g"
        )


def _difference(lacking: list[str], foreign: list[str]) -> str:
    parts = [f"lacks {listing(lacking, 3)}"] if lacking else []
    parts += [f"has {listing(foreign, 3)} besides"] if foreign else []
    return " and ".join(parts)
