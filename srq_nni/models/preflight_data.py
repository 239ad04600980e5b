"""Every dataset of an option file, and every image in it, before a run starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
from basicsr.utils.registry import DATASET_REGISTRY
from PIL import Image, UnidentifiedImageError

from srq_nni.errors import DataError, OptionError, did_you_mean, listing
from srq_nni.models.rules import buildable, known, need, number
from srq_nni.progress import track

Sizes = dict[Path, tuple[int, int]]
REQUIRED_OF_PAIRS = {
    "train": ("gt_size", "use_hflip", "use_rot", "batch_size_per_gpu", "num_worker_per_gpu"),
    "val": (),
    "test": (),
}
LARGEST_IMAGE = 178_956_970  # beyond which Pillow refuses to open an image
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def check_datasets(datasets: Mapping[str, Any], scale: Any, *, is_train: bool) -> None:
    """Check the ``datasets`` block and every image.

    Raises:
        SRQError: one sentence that names the key or the file.
    """
    phases = ("train", "val") if is_train else ("test", "val")
    if is_train and "train" not in datasets:
        raise OptionError("datasets: key 'train' is missing; add it, as in the files of basicsr_configs/")
    for name, dataset in datasets.items():
        phase = str(name).split("_")[0]
        if phase not in phases or (phase == "train" and name != "train"):
            other = f"; is this a file for srq {name}?" if name in ("train", "test") else ""
            raise OptionError(
                f"datasets: '{name}' is not a known phase; give {' or '.join(phases)}, or val_2 and so on{other}"
            )
        _check_dataset(f"datasets: {name}", dataset, phase, scale)


def _check_dataset(where: str, dataset: Any, phase: str, scale: Any) -> None:
    need(where, dataset, ["name", "type"])
    known(f"{where}: type", dataset["type"], DATASET_REGISTRY)
    paired = dataset["type"] == "PairedImageDataset"
    if paired:
        need(where, dataset, ["dataroot_gt", "dataroot_lq", "io_backend", *REQUIRED_OF_PAIRS[phase]])
        number("scale", scale, least=1, whole=True)
    if phase == "train" and isinstance(scale, int) and (dataset.get("gt_size") or 0) % scale:
        raise OptionError(f"{where}: gt_size: {dataset['gt_size']} is no multiple of scale {scale}; give one")
    backend = dataset.get("io_backend") or {}
    need(f"{where}: io_backend", backend, ["type"] if paired else [])
    if backend.get("type") != "disk":
        return
    folders = {key: dataset[key] for key in ("dataroot_gt", "dataroot_lq") if dataset.get(key)}
    files = {
        key: check_image_folder(Path(os.path.expanduser(str(folder))), f"{where}: {key}")
        for key, folder in folders.items()
    }
    if not dataset.get("meta_info_file") and paired:
        _check_pairs(where, dataset, files["dataroot_gt"], files["dataroot_lq"], phase, scale)


def _check_pairs(where: str, dataset: Mapping[str, Any], truth: Sizes, low: Sizes, phase: str, scale: int) -> None:
    names = {file.name: size for file, size in low.items()}
    template = str(dataset.get("filename_tmpl", "{}"))
    for file, (width, height) in truth.items():
        partner = f"{buildable(f'{where}: filename_tmpl', template.format, file.stem)}{file.suffix}"
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
    images = len(truth) * dataset.get("dataset_enlarge_ratio", 1)
    if phase == "train" and images < dataset["batch_size_per_gpu"]:
        raise DataError(
            f"{where}: batch_size_per_gpu {dataset['batch_size_per_gpu']} is more than the {images} images of an "
            "epoch; give a greater dataset_enlarge_ratio"
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
    return {file: check_image(file, where) for file in track(files, f"Checking {folder.name}", "image")}


def check_images_of(entry: Any, where: str) -> None:
    """Check the files of one entry of a dataset's ``paths``, a path or a dict of them, before BasicSR decodes them.

    Raises:
        DataError: as ``check_image``.
    """
    for path in entry.values() if isinstance(entry, Mapping) else (entry,):
        if isinstance(path, str) and os.path.isfile(path):  # others are keys of a database
            check_image(Path(path), where)


def check_image(file: Path, where: str) -> tuple[int, int]:
    """Return width and height of an image.

    Raises:
        DataError: if it is none, is cut off, or would unpack to more than ``LARGEST_IMAGE`` pixels.
    """
    try:
        with Image.open(file) as image:
            size = image.size
            if image.format == "PNG":
                image.verify()  # reads every chunk and its checksum, decodes nothing
            else:
                image.load()  # other formats have no checksums
    except Image.DecompressionBombError:
        raise DataError(
            f"{where}: '{file}' unpacks to more than {LARGEST_IMAGE} pixels; replace or remove it"
        ) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{where}: '{file}' is not a whole image ({reason}); replace or remove it") from None
    if not cv2.haveImageReader(str(file)):
        raise DataError(f"{where}: '{file}' has a format that BasicSR cannot read; give {listing(IMAGE_SUFFIXES)}")
    return size
