"""Everything that can be known to be wrong before a run writes its first file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import torch
from basicsr.models import lr_scheduler
from basicsr.utils.registry import DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import build_float, insert_quantizers
from srq_nni.compression.config import options_from
from srq_nni.compression.presets import find_preset
from srq_nni.errors import DataError, OptionError, did_you_mean, listing
from srq_nni.models.feature import InputRecorder
from srq_nni.models.quant_sr_model import check_parallel

Sizes = dict[Path, tuple[int, int]]

REQUIRED = {
    True: ("name", "model_type", "num_gpu", "datasets", "network_g", "path", "train", "logger"),
    False: ("name", "model_type", "num_gpu", "datasets", "network_g", "path", "val"),
}
BLOCKS = ("datasets", "network_g", "path", "train", "val", "logger")
REQUIRED_BELOW = {
    "train": ("total_iter", "optim_g", "scheduler"),
    "logger": ("print_freq", "save_checkpoint_freq", "use_tb_logger"),
}
REQUIRED_OF_PAIRS = {
    "train": ("gt_size", "use_hflip", "use_rot", "batch_size_per_gpu", "num_worker_per_gpu"),
    "val": (),
    "test": (),
}
SCHEDULERS = {
    "MultiStepLR": lr_scheduler.MultiStepRestartLR,
    "MultiStepRestartLR": lr_scheduler.MultiStepRestartLR,
    "CosineAnnealingRestartLR": lr_scheduler.CosineAnnealingRestartLR,
}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


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
    gpus = _check_gpus(opt["num_gpu"], launcher)
    if is_train:
        _check_training(opt)
    if opt.get("val") is not None:
        _check_validation(opt["val"], is_train)
    model_type = opt["model_type"]
    _known("model_type", model_type, MODEL_REGISTRY)
    quantized = issubclass(MODEL_REGISTRY.get(model_type), MODEL_REGISTRY.get("QuantSRModel"))
    if "quantization" in opt and not quantized:
        raise OptionError(
            f"quantization: the block is given but model_type is '{model_type}', which ignores it; "
            "set model_type: QuantSRModel, or delete the block"
        )
    if opt["network_g"].get("upscale", opt.get("scale")) != opt.get("scale"):
        raise OptionError(
            f"scale: {opt.get('scale')!r} and network_g: upscale: {opt['network_g']['upscale']!r} differ; "
            "make them equal"
        )
    if quantized:
        check_parallel(gpus, distributed=launcher != "none")
        _check_quantized_model(opt, is_train)
    else:
        _check_float_model(opt)
    _check_datasets(opt, is_train)


def _known(where: str, given: Any, registry: Any) -> None:
    names = [name for name, _ in registry]
    if given not in names:
        raise OptionError(f"{where}: {given!r} is not known{did_you_mean(given, names) or '; give a registered name'}")


def _need(where: str, block: Any, keys: Iterable[str]) -> None:
    if not isinstance(block, Mapping):
        raise OptionError(f"{where}: {block!r} is not a block of keys; add its keys below it, indented")
    for key in keys:
        if block.get(key) is None:
            raise OptionError(f"{where}: key '{key}' is missing; add it, as in the files of basicsr_configs/")


def _buildable(where: str, build: Callable[..., Any], *args: Any, **arguments: Any) -> Any:
    """Call ``build`` and turn its complaint about the arguments into an OptionError."""
    try:
        return build(*args, **arguments)
    except (AssertionError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OptionError(f"{where}: {given or 'nothing given'} does not fit ({reason}); mend it") from None


def _check_gpus(given: Any, launcher: str) -> int:
    whole = isinstance(given, int) and not isinstance(given, bool)
    if given != "auto" and not (whole and given >= 0):
        raise OptionError(f"num_gpu: {given!r} is not allowed; give a whole number, or auto")
    count = torch.cuda.device_count() if given == "auto" else int(given)
    if launcher == "none" and count > torch.cuda.device_count():
        raise OptionError(f"num_gpu: {given} but this machine has {torch.cuda.device_count()}; give num_gpu: 0 or auto")
    return count


def _check_training(opt: Mapping[str, Any]) -> None:
    train = opt["train"]
    for name, keys in REQUIRED_BELOW.items():
        _need(name, opt[name], keys)
    for key in ("optim_g", "scheduler"):
        _need(f"train: {key}", train[key], ["type"])
    settings = dict(train["optim_g"])
    if settings.pop("type") != "Adam":
        raise OptionError(f"train: optim_g: type {train['optim_g']['type']!r} is not known to BasicSR 1.4.2; give Adam")
    optimizer = _buildable("train: optim_g", torch.optim.Adam, [torch.nn.Parameter(torch.zeros(1))], **settings)
    _need("train: optim_q", train.get("optim_q", {}), [])
    rate = train.get("optim_q", {}).get("lr", 0)
    if not isinstance(rate, int | float) or rate < 0 or set(train.get("optim_q", {})) - {"lr"}:
        raise OptionError(f"train: optim_q: {train['optim_q']!r} is not allowed; give lr, a number, and nothing else")
    settings = dict(train["scheduler"])
    _known("train: scheduler: type", kind := settings.pop("type"), SCHEDULERS.items())
    _buildable("train: scheduler", SCHEDULERS[kind], optimizer, **settings)
    if not (train.get("pixel_opt") or train.get("perceptual_opt")):
        raise OptionError("train: neither pixel_opt nor perceptual_opt is given; add a loss")
    for key, block in train.items():
        if key in ("pixel_opt", "skt_opt") and block:
            _need(f"train: {key}", block, ["type"])
            _known(f"train: {key}: type", block["type"], LOSS_REGISTRY)
            arguments = {name: value for name, value in block.items() if name != "type"}
            _buildable(f"train: {key}", LOSS_REGISTRY.get(block["type"]), **arguments)
    for key in ("print_freq", "save_checkpoint_freq"):
        _positive(f"logger: {key}", opt["logger"][key])
    _positive("train: total_iter", train["total_iter"])
    resume = opt["path"].get("resume_state")
    if resume and not Path(str(resume)).expanduser().is_file():
        raise OptionError(f"path: resume_state: '{resume}' does not exist; give a .state file, or use --auto_resume")


def _positive(where: str, given: Any) -> None:
    if isinstance(given, bool) or not isinstance(given, int | float) or not given > 0:
        raise OptionError(f"{where}: {given!r} is not allowed; give a number above 0")


def _check_validation(val: Mapping[str, Any], is_train: bool) -> None:
    _need("val", val, ["val_freq", "save_img"] if is_train else ["save_img"])
    if is_train:
        _positive("val: val_freq", val["val_freq"])
    elif val["save_img"] and "suffix" not in val:
        raise OptionError("val: key 'suffix' is missing; add it (suffix: ~ takes the name of the run)")
    metrics = {} if val.get("metrics") is None else val["metrics"]
    _need("val: metrics", metrics, [])
    for name, metric in metrics.items():
        _need(f"val: metrics: {name}", metric, ["type"])
        _known(f"val: metrics: {name}: type", metric["type"], METRIC_REGISTRY)


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


def _check_datasets(opt: Mapping[str, Any], is_train: bool) -> None:
    phases = ("train", "val") if is_train else ("test", "val")
    if is_train and "train" not in opt["datasets"]:
        raise OptionError("datasets: key 'train' is missing; add it, as in the files of basicsr_configs/")
    for name, dataset in opt["datasets"].items():
        phase = str(name).split("_")[0]
        if phase not in phases or (phase == "train" and name != "train"):
            raise OptionError(
                f"datasets: '{name}' is not a known phase; give {' or '.join(phases)}, or val_2 and so on"
            )
        _check_dataset(f"datasets: {name}", dataset, phase, opt.get("scale"))


def _check_dataset(where: str, dataset: Any, phase: str, scale: Any) -> None:
    _need(where, dataset, ["name", "type"])
    _known(f"{where}: type", dataset["type"], DATASET_REGISTRY)
    paired = dataset["type"] == "PairedImageDataset"
    if paired:
        _need(where, dataset, ["dataroot_gt", "dataroot_lq", "io_backend", *REQUIRED_OF_PAIRS[phase]])
        if isinstance(scale, bool) or not isinstance(scale, int) or scale < 1:
            raise OptionError(f"scale: {scale!r} is not allowed; give the factor of network_g, a whole number")
    _need(f"{where}: io_backend", dataset.get("io_backend", {}), [])
    if dataset.get("io_backend", {}).get("type") != "disk":
        return
    folders = {key: dataset[key] for key in ("dataroot_gt", "dataroot_lq") if dataset.get(key)}
    files = {
        key: check_image_folder(Path(str(folder)).expanduser(), f"{where}: {key}") for key, folder in folders.items()
    }
    if not dataset.get("meta_info_file") and paired:
        _check_pairs(where, dataset, files["dataroot_gt"], files["dataroot_lq"], phase, scale)


def _check_pairs(where: str, dataset: Mapping[str, Any], truth: Sizes, low: Sizes, phase: str, scale: int) -> None:
    names = {file.name: size for file, size in low.items()}
    template = str(dataset.get("filename_tmpl", "{}"))
    for file, (width, height) in truth.items():
        partner = f"{_buildable(f'{where}: filename_tmpl', template.format, file.stem)}{file.suffix}"
        if partner not in names:
            raise DataError(
                f"{where}: '{file}' has no partner '{partner}' in '{dataset['dataroot_lq']}'; "
                f"add it or change filename_tmpl{did_you_mean(partner, names)}"
            )
        low_width, low_height = names[partner]
        enlarged = (low_width * scale, low_height * scale)
        if (width, height) != enlarged if phase == "train" else (width < enlarged[0] or height < enlarged[1]):
            raise DataError(
                f"{where}: '{file}' is {width}x{height} and its partner {low_width}x{low_height}, "
                f"which is not a factor of {scale}; replace one, or mend scale"
            )
        if phase == "train" and min(width, height) < dataset["gt_size"]:
            raise DataError(
                f"{where}: '{file}' is {width}x{height}, smaller than gt_size {dataset['gt_size']}; remove it"
            )
    if len(truth) != len(low):
        raise DataError(
            f"{where}: dataroot_gt has {len(truth)} images and dataroot_lq {len(low)}; make them the same ones"
        )


def check_image_folder(folder: Path, where: str) -> Sizes:
    """Return the images in ``folder`` with width and height, after a look into each.

    Raises:
        DataError: if the folder is missing or empty, or a file in it is not a whole image.
    """
    if not folder.is_dir():
        siblings = [item.name for item in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise DataError(
            f"{where}: '{folder}' is not a folder; give a folder of images{did_you_mean(folder.name, siblings)}"
        )
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    if not files:
        raise DataError(f"{where}: '{folder}' is empty; put images ({listing(IMAGE_SUFFIXES)}) there")
    return {
        file: _check_image(file, where)
        for file in tqdm(files, desc=f"Checking {folder.name}", disable=None, leave=False)
    }


def _check_image(file: Path, where: str) -> tuple[int, int]:
    try:
        with Image.open(file) as image:
            size = image.size
            if image.format == "PNG":
                image.verify()  # reads every chunk and its checksum, decodes nothing
            else:
                image.load()  # other formats have no checksums
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{where}: '{file}' is not a whole image ({reason}); replace or remove it") from None
    if not cv2.haveImageReader(str(file)):
        raise DataError(f"{where}: '{file}' has a format that BasicSR cannot read; give {listing(IMAGE_SUFFIXES)}")
    return size
