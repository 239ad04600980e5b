"""The checks of a run whose ``network_g`` is a quantized network by its name, such as ``PAMS_EDSR``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from srq_nni import checkpoint
from srq_nni.archs.aliases_arch import is_alias, two_blocks
from srq_nni.archs.quantized_arch import QuantizedNetwork, build_float
from srq_nni.compression.phases import gate_parameters
from srq_nni.errors import CheckpointError, OptionError
from srq_nni.quantization.layers import activation_quantizers

IGNORED = {"skt_opt": "SKT", "distill_opt": "a teacher", "optim_q": "the bounds' own learning rate"}


def refuse_alias(opt: Mapping[str, Any]) -> None:
    """Refuse such a network in a ``QuantSRModel``, which would quantize it once more.

    Raises:
        OptionError: if ``network_g`` is one.
    """
    network = opt["network_g"]
    if is_alias(network):
        base, block = two_blocks(network)
        raise OptionError(
            f"network_g: {network['type']} has quantizers of its own, and model_type '{opt['model_type']}' inserts "
            f"those of the 'quantization:' block; give type: {base['type']} and quantizer: {block['quantizer']} there, "
            "or set model_type: SRModel and delete the block"
        )


def check_alias(opt: Mapping[str, Any], *, is_train: bool, distributed: bool = False) -> None:
    """Check network, checkpoint and what a stock model would ignore or do wrong.

    Args:
        opt: all options of a run.
        is_train: whether the run trains.
        distributed: whether it does so in several processes.

    Raises:
        SRQError: one sentence that names the key.
    """
    network, path = opt["network_g"], opt["path"]
    model = build_float(network)
    train = opt.get("train") or {}
    for key, what in IGNORED.items():
        if train.get(key):
            raise OptionError(
                f"train: {key}: model_type '{opt['model_type']}' has no place for {what}; delete the key, or set "
                "model_type: QuantSRModel with a quantization block"
            )
    if train.get("ema_decay") and any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise OptionError(
            f"train: ema_decay: model_type '{opt['model_type']}' averages no batch statistics, which {network['type']} "
            "has; give ema_decay: 0, or set model_type: QuantSRModel with a quantization block"
        )
    if path.get("pretrain_network_g"):
        _check_checkpoint(model, opt, is_train)
        if is_train and distributed and gate_parameters(model):
            raise OptionError(
                f"path: pretrain_network_g: '{path['pretrain_network_g']}' has gates, which model_type "
                f"'{opt['model_type']}' would train apart in each process; leave --launcher out, or set model_type: "
                "QuantSRModel with a quantization block"
            )
    elif not is_train:
        raise OptionError("path: pretrain_network_g is missing; give the checkpoint to test")


def _check_checkpoint(model: nn.Module, opt: Mapping[str, Any], is_train: bool) -> None:
    network, path = opt["network_g"], opt["path"]
    file, param_key = path["pretrain_network_g"], path.get("param_key_g", "params")
    content = checkpoint.read(file)
    if param_key is not None and param_key not in content and "params" not in content:
        raise OptionError(
            f"path: pretrain_network_g: '{file}' has no '{param_key}'; set param_key_g: ~ for a flat file"
        )
    if (opt.get("train") or {}).get("ema_decay") and not {"params", "params_ema"} & content.keys():
        raise OptionError(
            f"train: ema_decay: SRModel cannot start an average from a flat file like '{file}'; "
            "give ema_decay: 0, or save the file as {params: ...}"
        )
    if checkpoint.METADATA_KEY in content:  # settings that no tensor shows, such as the percentile of the weights
        base, block = two_blocks(network)
        checkpoint.load_weights(QuantizedNetwork(base, block), file, param_key=param_key, quantization=block)
    state = checkpoint.state_dict_of(content, file, param_key)
    if not is_train and any(activation_quantizers(model)) and not any(map(checkpoint.is_quantizer_key, state)):
        raise OptionError(
            f"path: pretrain_network_g: '{file}' is a float checkpoint, and {network['type']} has no bounds without "
            "training; give a checkpoint that was trained with this network_g"
        )
    try:
        model.load_state_dict(state)
    except CheckpointError as error:
        raise CheckpointError(f"path: pretrain_network_g: '{file}': {error}") from None
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"path: pretrain_network_g: '{file}' does not fit network_g: {reason}") from None
