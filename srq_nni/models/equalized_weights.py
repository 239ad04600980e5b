"""The float weights of an option file, equalized for the quantizers that its training will insert."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from srq_nni import checkpoint
from srq_nni.archs.network_blocks import network_blocks
from srq_nni.archs.quantized_arch import build_float
from srq_nni.atomic import file_to_write
from srq_nni.compression.options import QuantizationOptions, options_from
from srq_nni.equalization.fit import Equalized, equalize
from srq_nni.errors import OptionError
from srq_nni.models.dataset_images import images_from

BATCH = 16  # images at once


def equalize_weights(
    opt: Mapping[str, Any],
    output: str | os.PathLike[str],
    *,
    iterations: int = 150,
    untrained: bool = False,
    phase: str = "train",
    count: int = 128,
    size: int = 48,
) -> Equalized:
    """Write the float weights that an option file starts from, in the bases that round best.

    Args:
        opt: all options, with a quantization block and float weights.
        output: file to write, a checkpoint with the key ``params``.
        iterations, untrained: see ``equalize``.
        phase, count, size: of the images, see ``images_from``.

    Raises:
        SRQError: if the options, the weights or the images are missing or wrong. Nothing is written then.
    """
    model, options = float_start(opt)
    target = file_to_write(output, opt["path"]["pretrain_network_g"])
    batches = _batches([pair.low for pair in images_from(opt, phase, count, size).pairs])
    done = equalize(model, options, batches, iterations, untrained=untrained)
    checkpoint.save({"params": model.state_dict()}, target)
    return done


def networks_to_start(opt: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the letters of the networks that start from the equalized weights: ``g``, and ``t`` where it must.

    SKT compares features, so its teacher has to compute them in the same bases.
    """
    compared = (opt.get("train") or {}).get("skt_opt") and not opt.get("network_t")
    return ("g", "t") if compared else ("g",)


def settings_to_train(opt: Mapping[str, Any], output: str | os.PathLike[str]) -> list[str]:
    """Return what ``--force_yml`` of ``srq train`` needs to start from the equalized weights."""
    return [f"path:pretrain_network_{network}={output}" for network in networks_to_start(opt)]


def float_start(opt: Mapping[str, Any]) -> tuple[nn.Module, QuantizationOptions]:
    """Return the float network with the weights that an option file starts from, and how it will be quantized.

    Raises:
        SRQError: if the options or the weights are missing or wrong.
    """
    block, options = _blocks(opt)
    path = opt.get("path") or {}
    weights = path.get("pretrain_network_g")
    if not weights:
        raise OptionError("path: pretrain_network_g is missing; give float weights of network_g, which are equalized")
    model = build_float(block)
    checkpoint.load_weights(model, weights, param_key=path.get("param_key_g", "params"))
    return model.eval(), options


def _blocks(opt: Mapping[str, Any]) -> tuple[dict[str, Any], QuantizationOptions]:
    network, block = network_blocks(opt)
    if block is None:
        raise OptionError("key 'quantization' is missing; add it with quantizer and bits: they say what is rounded")
    options = options_from(copy.deepcopy(block))
    if options.student == "random":
        beside = " beside profile: official" if options.profile == "official" else ""
        raise OptionError(
            "quantization: student: random trains other weights than the float ones that are equalized; "
            f"give student: float{beside}"
        )
    return network, options


def _batches(images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the images, (1, C, H, W) each, in batches of equal size."""
    alike: dict[torch.Size, list[torch.Tensor]] = {}
    for image in images:
        alike.setdefault(image.shape, []).append(image)
    return [torch.cat(same[i : i + BATCH]) for same in alike.values() for i in range(0, len(same), BATCH)]
