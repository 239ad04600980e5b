"""The summary of an option file, whose weights need not exist yet, and of a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from srq_nni import checkpoint
from srq_nni.archs.network_blocks import network_blocks
from srq_nni.archs.quantized_arch import build_float, insert_quantizers
from srq_nni.compression.options import QuantizationOptions, options_from
from srq_nni.compression.presets import find_preset
from srq_nni.models.options import read_options
from srq_nni.quantization.activation import DDTBActivation
from srq_nni.quantization.layers import activation_quantizers
from srq_nni.summary.network import summarize_network
from srq_nni.summary.probe import NotMeasured, probe_training
from srq_nni.summary.rows import Summary

SEED = 0  # of weights that do not exist yet; nothing that is shown depends on them


def summarize_options(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, measure_training: bool = False
) -> Summary:
    """Return the summary of the network that an option file trains or tests. No weights and no images are needed.

    Args:
        path: BasicSR option file.
        overrides: as ``--force_yml``.
        measure_training: run a few steps on random images to estimate the time of the training; writes no file.

    Raises:
        OptionError: if the file or its ``network_g`` or ``quantization`` block is wrong.
        CheckpointError: if the weights it names exist and do not fit.
    """
    path = Path(path)
    opt = read_options(path, overrides)
    network, block = network_blocks(opt)
    options = None if block is None else options_from(block)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = build_float(network)
        if options is not None:
            insert_quantizers(model, options)
    weights = (opt.get("path") or {}).get("pretrain_network_g")
    trained, notes = False, []
    if weights and Path(str(weights)).expanduser().is_file():
        key = (opt.get("path") or {}).get("param_key_g", "params")
        trained = checkpoint.load_weights(model, weights, param_key=key, quantization=block)
    elif weights:
        notes.append(f"note: {weights} does not exist yet; nothing above needs it, training will")
    ratio = None if trained or options is None else _gate_ratio(options, network, model)
    summary = summarize_network(model, subject=path.name, wiring=_wiring(options), gate_ratio=ratio)
    summary = replace(summary, network=str(network.get("type")))
    if measure_training:
        try:
            summary = replace(summary, training=probe_training(opt))
        except NotMeasured as reason:
            notes.append(f"note: the time of the training was not measured: {reason}")
    return replace(summary, notes=tuple(notes))


def summarize_checkpoint(path: str | os.PathLike[str]) -> Summary:
    """Return the summary of a checkpoint of ours, packed or not, with the gates that training chose.

    Raises:
        CheckpointError: if it is missing or broken, or does not say which network it is.
    """
    model = checkpoint.load(path)
    blocks = checkpoint.blocks_of(model)
    assert blocks is not None  # a file without them is refused
    network, quantization = blocks
    summary = summarize_network(model, subject=Path(path).name, wiring=_wiring(options_from(quantization)))
    return replace(summary, network=str(network.get("type")))


def _wiring(options: QuantizationOptions | None) -> str:
    if options is None:
        return ""
    return options.wiring if options.config_list is None else "config_list"


def _gate_ratio(options: QuantizationOptions, network: Mapping[str, Any], model: torch.nn.Module) -> float:
    """Return the share of DDTB's quantizers that training will give a gate."""
    if not any(isinstance(quantizer, DDTBActivation) for _, quantizer in activation_quantizers(model)):
        return 0.0
    if options.dynamic_ratio is not None:
        return options.dynamic_ratio
    return find_preset(str(network.get("type"))).dynamic_ratio
