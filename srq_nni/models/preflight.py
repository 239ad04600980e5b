"""Everything that can be known to be wrong before a run writes its first file."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.models import lr_scheduler
from basicsr.utils.registry import LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from srq_nni import checkpoint
from srq_nni.archs.aliases_arch import is_alias
from srq_nni.archs.quantized_arch import build_float, insert_quantizers
from srq_nni.compression.options import options_from
from srq_nni.compression.presets import find_preset
from srq_nni.errors import OptionError
from srq_nni.models import cpu_distributed
from srq_nni.models.base import check_base_model
from srq_nni.models.equalized_start import check_equalization
from srq_nni.models.preflight_alias import check_alias, refuse_alias
from srq_nni.models.preflight_data import check_datasets
from srq_nni.models.preflight_teacher import check_teacher
from srq_nni.models.quant_sr_model import check_parallel
from srq_nni.models.rules import buildable, fits, known, need
from srq_nni.models.schema import check_kinds
from srq_nni.models.speed import check_speed
from srq_nni.models.teacher import TEACHER_LOSSES, unused_settings
from srq_nni.models.unknown_keys import check_spelling, ignored_settings

REQUIRED = {
    True: ("name", "model_type", "num_gpu", "datasets", "network_g", "path", "train", "logger"),
    False: ("name", "model_type", "num_gpu", "datasets", "network_g", "path", "val"),
}
REQUIRED_BELOW = {
    "train": ("total_iter", "optim_g", "scheduler"),
    "logger": ("print_freq", "save_checkpoint_freq", "use_tb_logger"),
}
LONGEST_NAME = 200  # bytes; BasicSR appends dates to it, and files may have 255
SCHEDULERS = {
    "MultiStepLR": lr_scheduler.MultiStepRestartLR,
    "MultiStepRestartLR": lr_scheduler.MultiStepRestartLR,
    "CosineAnnealingRestartLR": lr_scheduler.CosineAnnealingRestartLR,
}


def check_options(opt: Mapping[str, Any], *, is_train: bool, launcher: str = "none") -> list[str]:
    """Check the options of a run: keys, quantization, checkpoints against networks, every image.

    Returns:
        Sentences about what is allowed but surely not meant: keys that nothing reads.

    Raises:
        SRQError: one sentence that names the key or the file, what was given and what is allowed.
    """
    need("", opt, REQUIRED[is_train])
    check_kinds(opt)
    model_type = opt["model_type"]
    known("model_type", model_type, MODEL_REGISTRY)
    quantized = issubclass(MODEL_REGISTRY.get(model_type), MODEL_REGISTRY.get("QuantSRModel"))
    check_base_model(opt, quantized=quantized, is_train=is_train)
    warnings = check_spelling(opt)
    _check_name(opt["name"])
    gpus = _check_gpus(opt["num_gpu"], launcher)
    need("network_g", opt["network_g"], ["type"])
    if is_train:
        _check_training(opt)
    if opt.get("val") is not None:
        _check_validation(opt["val"], is_train)
    if "quantization" in opt and not quantized:
        raise OptionError(
            f"quantization: the block is given but model_type is '{model_type}', which ignores it; "
            "set model_type: QuantSRModel, or delete the block"
        )
    check_speed(opt, quantized=quantized)
    if opt["network_g"].get("upscale", opt.get("scale")) != opt.get("scale"):
        raise OptionError(
            f"scale: {opt.get('scale')!r} and network_g: upscale: {opt['network_g']['upscale']!r} differ; "
            "make them equal"
        )
    if quantized:
        refuse_alias(opt)
        check_parallel(gpus, distributed=launcher != "none")
        _check_quantized_model(opt, is_train)
        warnings += [*_check_phases(opt), *unused_settings(opt)] if is_train else []
    elif is_alias(opt["network_g"]):
        check_parallel(gpus, distributed=launcher != "none")
        check_alias(opt, is_train=is_train, distributed=launcher != "none")
    else:
        _check_float_model(opt)
    if not quantized:
        warnings += ignored_settings(opt)
    check_datasets(opt["datasets"], opt.get("scale"), is_train=is_train)
    if quantized and is_train:
        check_equalization(opt)  # on one of these images
    return warnings


def _check_name(name: str) -> None:
    """BasicSR moves ``experiments/NAME`` out of the way, which must be a folder of its own."""
    if name in (".", "..") or not name.isprintable() or "/" in name or len(name.encode()) > LONGEST_NAME:
        raise OptionError(f"name: {name[:80]!r} cannot name a folder; give a plain word")


def _check_gpus(given: int | str, launcher: str) -> int:
    count = torch.cuda.device_count() if given == "auto" else int(given)
    on_cpu = launcher == "pytorch" and cpu_distributed.is_enabled()
    if launcher != "none" and not torch.cuda.is_available() and not on_cpu:
        raise OptionError(
            f"--launcher {launcher}: BasicSR trains one process per GPU and this machine has none; leave --launcher out"
        )
    if launcher == "none" and count > torch.cuda.device_count():
        raise OptionError(f"num_gpu: {given} but this machine has {torch.cuda.device_count()}; give num_gpu: 0 or auto")
    return count


def _check_training(opt: Mapping[str, Any]) -> None:
    train = opt["train"]
    for name, keys in REQUIRED_BELOW.items():
        need(name, opt[name], keys)
    for key in ("optim_g", "scheduler"):
        need(f"train: {key}", train[key], ["type"])
    settings = {key: value for key, value in train["optim_g"].items() if key != "type"}
    need("train: optim_g", settings, ["lr"])
    optimizer = buildable("train: optim_g", torch.optim.Adam, [torch.nn.Parameter(torch.zeros(1))], **settings)
    if "optim_q" in train and len(train["optim_q"]) != 1:
        raise OptionError(
            f"train: optim_q: {dict(train['optim_q'])!r} is not allowed; give either relative_lr (in widths of a "
            "quantizer) or lr (in the unit of the activations) there"
        )
    settings = {key: value for key, value in train["scheduler"].items() if key != "type"}
    buildable("train: scheduler", SCHEDULERS[train["scheduler"]["type"]], optimizer, **settings)
    if not (train.get("pixel_opt") or train.get("perceptual_opt")):
        raise OptionError("train: neither pixel_opt nor perceptual_opt is given; add a loss")
    for key, block in train.items():
        if str(key).endswith("_opt") and block:
            _check_loss(f"train: {key}", block, whole=key in ("pixel_opt", *TEACHER_LOSSES))
    resume = opt["path"].get("resume_state")
    if resume and not Path(os.path.expanduser(resume)).is_file():
        raise OptionError(f"path: resume_state: '{resume}' does not exist; give a .state file, or use --auto_resume")


def _check_loss(where: str, block: Any, *, whole: bool) -> None:
    need(where, block, ["type"])
    known(f"{where}: type", block["type"], LOSS_REGISTRY)
    arguments = {name: value for name, value in block.items() if name != "type"}
    fits(where, LOSS_REGISTRY.get(block["type"]), arguments)
    if whole:
        loss = buildable(where, LOSS_REGISTRY.get(block["type"]), **arguments)
        buildable(where, loss, torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def _check_validation(val: Mapping[str, Any], is_train: bool) -> None:
    need("val", val, ["val_freq", "save_img"] if is_train else ["save_img"])
    if not is_train and val["save_img"] and "suffix" not in val:
        raise OptionError("val: key 'suffix' is missing; add it (suffix: ~ takes the name of the run)")
    metrics = {} if val.get("metrics") is None else val["metrics"]
    need("val: metrics", metrics)
    for name, metric in metrics.items():
        need(f"val: metrics: {name}", metric, ["type"])
        known(f"val: metrics: {name}: type", metric["type"], METRIC_REGISTRY)
        if "crop_border" in inspect.signature(METRIC_REGISTRY.get(metric["type"])).parameters:
            need(f"val: metrics: {name}", metric, ["crop_border"])


def _check_float_model(opt: Mapping[str, Any]) -> None:
    path, model = opt["path"], build_float(opt["network_g"])
    if not path.get("pretrain_network_g"):
        return
    param_key = path.get("param_key_g", "params")
    content = checkpoint.read(path["pretrain_network_g"])
    if param_key is not None and param_key not in content and "params" not in content:
        raise OptionError(
            f"path: pretrain_network_g: '{path['pretrain_network_g']}' has no '{param_key}'; "
            "set param_key_g: ~ for a flat file"
        )
    if (opt.get("train") or {}).get("ema_decay") and not {"params", "params_ema"} & content.keys():
        raise OptionError(
            f"train: ema_decay: SRModel cannot start an average from a flat file like '{path['pretrain_network_g']}'; "
            "give ema_decay: 0, or save the file as {params: ...}"
        )
    if path.get("strict_load_g", True):
        checkpoint.load_weights(model, path["pretrain_network_g"], param_key=param_key)


def _check_phases(opt: Mapping[str, Any]) -> list[str]:
    """Check that the run outlasts its calibration, without which DDTB has no bounds; return what is odd about PAMS."""
    options, total = options_from(opt["quantization"]), opt["train"]["total_iter"]
    if total > options.calibration_iters:
        return []
    sentence = f"train: total_iter: {total} ends with the calibration (quantization: calibration_iters: " + (
        f"{options.calibration_iters})"
    )
    if options.quantizer == "ddtb":
        raise OptionError(f"{sentence}, which only observes; give more iterations, or a shorter calibration")
    return [f"{sentence}, so the bounds never train"]


def _check_quantized_model(opt: Mapping[str, Any], is_train: bool) -> None:
    if "quantization" not in opt:
        raise OptionError(
            "model_type QuantSRModel needs a 'quantization:' block with at least 'quantizer' and 'bits'; "
            "add it, or set model_type: SRModel"
        )
    options = options_from(opt["quantization"])
    network, path = opt["network_g"], opt["path"]
    model = build_float(network)
    insert_quantizers(model, options)
    if options.quantizer == "ddtb" and options.dynamic_ratio is None:
        find_preset(network["type"])  # it knows the published ratio
    if path.get("pretrain_network_g"):
        checkpoint.load_weights(
            model,
            path["pretrain_network_g"],
            param_key=path.get("param_key_g", "params"),
            quantization=opt["quantization"],
            to_use=not is_train,
        )
    elif not is_train:
        raise OptionError("path: pretrain_network_g is missing; give the checkpoint to test")
    if is_train:
        check_teacher(opt, options)
