"""Everything that can be known to be wrong before a run writes its first file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
from basicsr.utils.registry import DATASET_REGISTRY, MODEL_REGISTRY
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import build_float, insert_quantizers
from srq_nni.compression.config import options_from
from srq_nni.compression.presets import find_preset
from srq_nni.errors import DataError, OptionError, did_you_mean, listing

REQUIRED = {
    True: ("name", "model_type", "num_gpu", "datasets", "network_g", "path", "train", "logger"),
    False: ("name", "model_type", "num_gpu", "datasets", "network_g", "path", "val"),
}
BLOCKS = ("datasets", "network_g", "path", "train", "logger")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def check_options(opt: Mapping[str, Any], *, is_train: bool) -> None:
    """Check the options of a run: keys, quantization, checkpoints against networks, every image.

    Raises:
        SRQError: one sentence that names the key or the file, what was given and what is allowed.
    """
    _check_blocks(opt, is_train)
    model_type = opt["model_type"]
    if model_type not in MODEL_REGISTRY:
        names = [name for name, _ in MODEL_REGISTRY]
        raise OptionError(f"model_type: {model_type!r} is not known{did_you_mean(model_type, names)}")
    quantized = issubclass(MODEL_REGISTRY.get(model_type), MODEL_REGISTRY.get("QuantSRModel"))
    if "quantization" in opt and not quantized:
        raise OptionError(
            f"quantization: the block is given but model_type is '{model_type}', which ignores it; "
            "set model_type: QuantSRModel, or delete the block"
        )
    if quantized:
        _check_quantized_model(opt, is_train)
    else:
        build_float(opt["network_g"])
    for name, dataset in opt["datasets"].items():
        _check_dataset(name, dataset)


def _check_blocks(opt: Mapping[str, Any], is_train: bool) -> None:
    for key in REQUIRED[is_train]:
        if opt.get(key) is None:
            raise OptionError(f"key '{key}' is missing; add it, as in the files of basicsr_configs/")
        if key in BLOCKS and not isinstance(opt[key], Mapping):
            raise OptionError(f"{key}: {opt[key]!r} is not a block of keys; add its keys below it, indented")


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
        if options.feature is None:
            find_preset(network["type"])
        checkpoint.load_weights(teacher, path["pretrain_network_t"], param_key=path.get("param_key_t", "params"))


def _check_dataset(name: str, dataset: Mapping[str, Any]) -> None:
    where = f"datasets: {name}"
    if dataset.get("type") not in DATASET_REGISTRY:
        names = [known for known, _ in DATASET_REGISTRY]
        raise OptionError(
            f"{where}: type {dataset.get('type')!r} is not known{did_you_mean(dataset.get('type'), names)}"
        )
    if dataset.get("io_backend", {}).get("type") != "disk":
        return
    folders = {key: Path(dataset[key]).expanduser() for key in ("dataroot_gt", "dataroot_lq") if dataset.get(key)}
    files = {key: check_image_folder(folder, f"{where}: {key}") for key, folder in folders.items()}
    if dataset.get("meta_info_file") or dataset["type"] != "PairedImageDataset" or len(files) < 2:
        return
    template = dataset.get("filename_tmpl", "{}")
    low_resolution = {file.name for file in files["dataroot_lq"]}
    for file in files["dataroot_gt"]:
        partner = f"{template.format(file.stem)}{file.suffix}"
        if partner not in low_resolution:
            raise DataError(
                f"{where}: '{file}' has no partner '{partner}' in '{folders['dataroot_lq']}'; "
                f"add it or change filename_tmpl{did_you_mean(partner, low_resolution)}"
            )


def check_image_folder(folder: Path, where: str) -> list[Path]:
    """Return the images in ``folder``, after a look into each.

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
    for file in tqdm(files, desc=f"Checking {folder.name}", disable=None, leave=False):
        _check_image(file, where)
    return files


def _check_image(file: Path, where: str) -> None:
    try:
        with Image.open(file) as image:
            image.verify()  # reads every chunk and its checksum, decodes nothing
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: '{file}' is not a whole image ({error}); replace or remove it") from None
    if not cv2.haveImageReader(str(file)):
        raise DataError(f"{where}: '{file}' has a format that BasicSR cannot read; give {listing(IMAGE_SUFFIXES)}")
