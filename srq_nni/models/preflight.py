"""Everything that can be known to be wrong before a run writes its first file."""

from __future__ import annotations

import inspect
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
from srq_nni.errors import OptionError, did_you_mean
from srq_nni.models import cpu_distributed
from srq_nni.models.base import check_base_model
from srq_nni.models.feature import InputRecorder
from srq_nni.models.preflight_alias import check_alias, refuse_alias
from srq_nni.models.preflight_data import check_datasets
from srq_nni.models.quant_sr_model import check_parallel
from srq_nni.models.rules import buildable, known, need, number
from srq_nni.models.speed import check_speed

REQUIRED = {
    True: ("name", "model_type", "num_gpu", "datasets", "network_g", "path", "train", "logger"),
    False: ("name", "model_type", "num_gpu", "datasets", "network_g", "path", "val"),
}
BLOCKS = ("datasets", "network_g", "path", "train", "val", "logger")
REQUIRED_BELOW = {
    "train": ("total_iter", "optim_g", "scheduler"),
    "logger": ("print_freq", "save_checkpoint_freq", "use_tb_logger"),
}
PATH_KINDS = {  # beginning of a key of `path` -> what its value must be
    "pretrain_network_": str,
    "param_key_": str,
    "strict_load_": bool,
    "resume_state": str,
    "ignore_resume_networks": list,
}
SCHEDULERS = {
    "MultiStepLR": lr_scheduler.MultiStepRestartLR,
    "MultiStepRestartLR": lr_scheduler.MultiStepRestartLR,
    "CosineAnnealingRestartLR": lr_scheduler.CosineAnnealingRestartLR,
}


def check_options(opt: Mapping[str, Any], *, is_train: bool, launcher: str = "none") -> None:
    """Check the options of a run: keys, quantization, checkpoints against networks, every image.

    Raises:
        SRQError: one sentence that names the key or the file, what was given and what is allowed.
    """
    for key in REQUIRED[is_train]:
        if opt.get(key) is None:
            raise OptionError(f"key '{key}' is missing; add it, as in the files of basicsr_configs/")
    for key in BLOCKS:
        if opt.get(key) is not None and not isinstance(opt[key], Mapping):
            raise OptionError(f"{key}: {opt[key]!r} is not a block of keys; add its keys below it, indented")
    if not isinstance(opt["name"], str) or "/" in opt["name"]:
        raise OptionError(f"name: {opt['name']!r} cannot name a folder; give a plain word")
    _check_paths(opt["path"])
    if opt.get("manual_seed") is not None:
        number("manual_seed", opt["manual_seed"], below=2**32, whole=True)
    gpus = _check_gpus(opt["num_gpu"], launcher)
    if is_train:
        _check_training(opt)
    if opt.get("val") is not None:
        _check_validation(opt["val"], is_train)
    model_type = opt["model_type"]
    known("model_type", model_type, MODEL_REGISTRY)
    quantized = issubclass(MODEL_REGISTRY.get(model_type), MODEL_REGISTRY.get("QuantSRModel"))
    if "quantization" in opt and not quantized:
        raise OptionError(
            f"quantization: the block is given but model_type is '{model_type}', which ignores it; "
            "set model_type: QuantSRModel, or delete the block"
        )
    check_base_model(opt, quantized=quantized, is_train=is_train)
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
    elif is_alias(opt["network_g"]):
        check_parallel(gpus, distributed=launcher != "none")
        check_alias(opt, is_train=is_train)
    else:
        _check_float_model(opt)
    check_datasets(opt["datasets"], opt.get("scale"), is_train=is_train)


def _check_paths(path: Mapping[str, Any]) -> None:
    """Check the kinds of values, and the keys: BasicSR makes a folder of every key that it does not know."""
    for key, value in path.items():
        kind = next((kind for prefix, kind in PATH_KINDS.items() if str(key).startswith(prefix)), None)
        if kind is None:
            near = did_you_mean(key, ["pretrain_network_g", "pretrain_network_t", *PATH_KINDS])
            raise OptionError(f"path: key '{key}' is not known and would become a folder{near or '; delete it'}")
        if value is not None and (not isinstance(value, kind) or value == ""):
            raise OptionError(f"path: {key}: {value!r} is not allowed; give a {kind.__name__}")


def _check_gpus(given: Any, launcher: str) -> int:
    whole = isinstance(given, int) and not isinstance(given, bool)
    if given != "auto" and not (whole and given >= 0):
        raise OptionError(f"num_gpu: {given!r} is not allowed; give a whole number, or auto")
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
    settings = dict(train["optim_g"])
    if settings.pop("type") != "Adam":
        raise OptionError(f"train: optim_g: type {train['optim_g']['type']!r} is not known to BasicSR 1.4.2; give Adam")
    need("train: optim_g", settings, ["lr"])
    optimizer = buildable("train: optim_g", torch.optim.Adam, [torch.nn.Parameter(torch.zeros(1))], **settings)
    bounds = train.get("optim_q", {"lr": 0.0})
    need("train: optim_q", bounds, ["lr"])
    number("train: optim_q: lr", bounds["lr"])
    if set(bounds) != {"lr"}:
        raise OptionError(f"train: optim_q: {dict(bounds)!r} is not allowed; give lr and nothing else")
    settings = dict(train["scheduler"])
    known("train: scheduler: type", kind := settings.pop("type"), SCHEDULERS.items())
    buildable("train: scheduler", SCHEDULERS[kind], optimizer, **settings)
    if not (train.get("pixel_opt") or train.get("perceptual_opt")):
        raise OptionError("train: neither pixel_opt nor perceptual_opt is given; add a loss")
    for key, block in train.items():
        if key in ("pixel_opt", "skt_opt") and block:
            need(f"train: {key}", block, ["type"])
            known(f"train: {key}: type", block["type"], LOSS_REGISTRY)
            arguments = {name: value for name, value in block.items() if name != "type"}
            loss = buildable(f"train: {key}", LOSS_REGISTRY.get(block["type"]), **arguments)
            buildable(f"train: {key}", loss, torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
    number("train: ema_decay", train.get("ema_decay", 0), below=1)
    number("train: total_iter", train["total_iter"], least=1)
    for key in ("print_freq", "save_checkpoint_freq"):
        number(f"logger: {key}", opt["logger"][key], least=1)
    if not isinstance(opt["logger"]["use_tb_logger"], bool):
        raise OptionError(
            f"logger: use_tb_logger: {opt['logger']['use_tb_logger']!r} is not allowed; give true or false"
        )
    resume = opt["path"].get("resume_state")
    if resume and not Path(str(resume)).expanduser().is_file():
        raise OptionError(f"path: resume_state: '{resume}' does not exist; give a .state file, or use --auto_resume")


def _check_validation(val: Mapping[str, Any], is_train: bool) -> None:
    need("val", val, ["val_freq", "save_img"] if is_train else ["save_img"])
    if is_train:
        number("val: val_freq", val["val_freq"], least=1)
    elif val["save_img"] and "suffix" not in val:
        raise OptionError("val: key 'suffix' is missing; add it (suffix: ~ takes the name of the run)")
    metrics = {} if val.get("metrics") is None else val["metrics"]
    need("val: metrics", metrics)
    for name, metric in metrics.items():
        need(f"val: metrics: {name}", metric, ["type"])
        known(f"val: metrics: {name}: type", metric["type"], METRIC_REGISTRY)
        if "crop_border" in inspect.signature(METRIC_REGISTRY.get(metric["type"])).parameters:
            need(f"val: metrics: {name}", metric, ["crop_border"])
            number(f"val: metrics: {name}: crop_border", metric["crop_border"], whole=True)


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


def _check_quantized_model(opt: Mapping[str, Any], is_train: bool) -> None:
    if "quantization" not in opt:
        raise OptionError(
            "model_type QuantSRModel needs a 'quantization:' block with at least 'quantizer' and 'bits'; "
            "add it, or set model_type: SRModel"
        )
    options = options_from(opt["quantization"])
    network, path = opt["network_g"], opt["path"]
    model, teacher = build_float(network), build_float(network)
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
    if is_train and opt["train"].get("skt_opt"):
        if not path.get("pretrain_network_t"):
            raise OptionError(
                "train: skt_opt compares with a teacher, but path: pretrain_network_t is missing; "
                "give the float checkpoint of network_g there, or delete skt_opt"
            )
        InputRecorder(teacher, options.feature or find_preset(network["type"]).feature)
        checkpoint.load_weights(teacher, path["pretrain_network_t"], param_key=path.get("param_key_t", "params"))
