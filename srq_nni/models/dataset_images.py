"""The images on which a search measures: pairs from the option file's datasets, cut to the middle."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from basicsr.data.paired_image_dataset import PairedImageDataset

from srq_nni.errors import DataError, OptionError
from srq_nni.models.preflight_data import check_images_of
from srq_nni.models.rules import need

BENCHMARKS = ("set5", "set14", "b100", "bsd100", "bsds100", "urban100", "manga109")


@dataclass(frozen=True)
class Pair:
    """One low-resolution image and its truth, RGB in [0, 1], (1, C, H, W) and (1, C, sH, sW), and its file."""

    path: str
    low: torch.Tensor
    truth: torch.Tensor


@dataclass(frozen=True)
class ImageSet:
    """The images of a search.

    Attributes:
        pairs: in the order of the dataset.
        dataset: its name in the option file.
        warning: a sentence, where results are published on these images; else empty.
    """

    pairs: tuple[Pair, ...]
    dataset: str
    warning: str = ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all pixels."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            digest.update(pair.low.numpy().tobytes() + pair.truth.numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> str:
        """Return one line: which images these are."""
        height, width = self.pairs[0].low.shape[2:]
        names = ", ".join(pair.path.rpartition("/")[2] for pair in self.pairs)
        count = f"{len(self.pairs)} image{'' if len(self.pairs) == 1 else 's'}"
        return f"{count} of '{self.dataset}', the middle {width}x{height} of each: {names}"


def images_from(opt: Mapping[str, Any], phase: str = "train", count: int = 8, size: int = 64) -> ImageSet:
    """Return ``count`` images of a dataset of an option file, evenly spread over it.

    Args:
        opt: all options.
        phase: key of ``datasets``; its training crops, flips and rotations are left out.
        count: number of images; fewer if the dataset has fewer.
        size: side of what is taken from the middle of the low-resolution image, in pixels.

    Raises:
        OptionError: if there is no such dataset, or it is not one of pairs.
        DataError: if an image cannot be read.
    """
    for name, given in (("count", count), ("size", size)):
        if given < 1:
            raise OptionError(f"--{name} {given} is not allowed; give a number from 1")
    datasets = opt.get("datasets")
    if not isinstance(datasets, Mapping) or not isinstance(datasets.get(phase), Mapping):
        known = ", ".join(map(str, datasets)) if isinstance(datasets, Mapping) else "none"
        raise OptionError(f"datasets: there is no '{phase}' to measure on; give --images one of: {known}")
    dataset = copy.deepcopy(dict(datasets[phase]))  # BasicSR takes keys out of it
    need(f"datasets: {phase}", dataset, ["type"])
    if dataset["type"] != "PairedImageDataset":
        raise OptionError(f"datasets: {phase}: type {dataset['type']!r} has no pairs; give a PairedImageDataset")
    need(f"datasets: {phase}", dataset, ["dataroot_gt", "dataroot_lq", "io_backend"])
    scale = opt.get("scale")
    if not isinstance(scale, int):
        raise OptionError(f"scale: {scale!r} is not allowed; give the whole number that network_g enlarges by")
    try:
        source = PairedImageDataset({**dataset, "phase": "val", "scale": scale})
        chosen = [round(index * (len(source) - 1) / max(count - 1, 1)) for index in range(min(count, len(source)))]
        for index in dict.fromkeys(chosen):
            check_images_of(source.paths[index], f"datasets: {phase}")
        pairs = tuple(_pair(source[index], size, scale) for index in dict.fromkeys(chosen))
    except (AssertionError, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"datasets: {phase}: its images cannot be read ({reason}); mend the folders it names"
        ) from error
    if not pairs:
        raise DataError(f"datasets: {phase}: it holds no image; put some there")
    return ImageSet(pairs, str(dataset.get("name", phase)), _warning(phase, dataset))


def _pair(item: Mapping[str, Any], size: int, scale: int) -> Pair:
    low, truth = item["lq"], item["gt"]
    height, width = (min(side, size) for side in low.shape[1:])
    top, left = (low.shape[1] - height) // 2, (low.shape[2] - width) // 2
    low = low[None, :, top : top + height, left : left + width].contiguous()
    truth = truth[None, :, top * scale : (top + height) * scale, left * scale : (left + width) * scale].contiguous()
    if truth.shape[2:] != (height * scale, width * scale):
        raise ValueError(f"{item['gt_path']} is not {scale} times its partner")
    return Pair(str(item["lq_path"]), low, truth)


def _warning(phase: str, dataset: Mapping[str, Any]) -> str:
    folders = {part.lower() for key in ("dataroot_gt", "name") for part in str(dataset.get(key, "")).split("/")}
    known = sorted(folders & set(BENCHMARKS))
    if not known:
        return ""
    return (
        f"bits are being chosen on {dataset.get('name', phase)}, on which results are published: "
        "do not publish results of these bits on it, or give --images train"
    )
