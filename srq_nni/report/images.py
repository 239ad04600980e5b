"""The validation images of a run through the quantized network, the float one and bicubic, with metrics and crops."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import build_float
from srq_nni.errors import DataError, SRQError
from srq_nni.models.preflight_data import check_images_of
from srq_nni.progress import track
from srq_nni.report.experiment import Experiment

CROP = 64  # pixels of the high-resolution image
Pixels = np.ndarray  # uint8, RGB, (H, W, 3)


@dataclass(frozen=True)
class ImageReport:
    """One validation image.

    Attributes:
        name: file name without folder and ending.
        scores: ``{method: {metric: value}}`` for ``bicubic``, ``float`` (if its weights were found), ``quantized``.
        crop: (top, left) of the crop: where float (or bicubic) and quantized differ most.
        crops: ``HR`` and each method at that place, uint8 RGB (CROP, CROP, 3) at most.
        difference: |quantized - float| there in grey levels, mean over colours, (CROP, CROP) at most.
        whole: the quantized network's image, for orientation, uint8 RGB, at most 480 pixels wide.
    """

    name: str
    scores: Mapping[str, Mapping[str, float]]
    crop: tuple[int, int]
    crops: Mapping[str, Pixels]
    difference: np.ndarray
    whole: Pixels


@dataclass
class Comparison:
    """All validation images of one run.

    Attributes:
        dataset: name of the data set.
        metrics: names, in the order of the options.
        images: one report each.
        notes: one sentence for each thing that is missing.
        low_resolution: the first inputs, (1, C, H, W), for the statistics of the layers.
    """

    dataset: str = ""
    metrics: tuple[str, ...] = ()
    images: list[ImageReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    low_resolution: list[torch.Tensor] = field(default_factory=list)


@torch.no_grad()
def compare_images(experiment: Experiment, quantized: nn.Module, limit: int, statistics_from: int = 4) -> Comparison:
    """Run at most ``limit`` images of the first validation set; what is missing becomes a note, not an error."""
    result = Comparison()
    found = _validation_set(experiment, result.notes)
    if found is None:
        return result
    options, dataset = found
    result.dataset = str(options["name"])
    scale = int(options["scale"])
    metrics = _metrics(experiment.options, scale)
    result.metrics = tuple(metrics)
    methods: dict[str, nn.Module | None] = {"bicubic": None}
    float_network = _float_network(experiment, result.notes)
    if float_network is not None:
        methods["float"] = float_network
    methods["quantized"] = quantized
    count = min(limit, len(dataset))
    if count < len(dataset):
        result.notes.append(f"{count} of {len(dataset)} images of {result.dataset} are shown; --images raises it")
    paths = dataset.paths if isinstance(getattr(dataset, "paths", None), list) else [None] * count
    for index in track(range(count), "Comparing images", "image"):
        try:
            check_images_of(paths[index], result.dataset)
        except DataError as error:
            result.notes.append(f"left out: {error}")
            continue
        item = dataset[index]
        low = item["lq"][None]
        if len(result.low_resolution) < statistics_from:
            result.low_resolution.append(low)
        outputs = {name: _upscale(network, low, scale) for name, network in methods.items()}
        name = str(item["gt_path"]).replace("\\", "/").rpartition("/")[2].rpartition(".")[0]
        result.images.append(_image_report(name, outputs, _pixels(item["gt"]), metrics))
    return result


def _validation_set(experiment: Experiment, notes: list[str]) -> tuple[dict[str, Any], Any] | None:
    from basicsr.utils.registry import DATASET_REGISTRY

    datasets = experiment.options.get("datasets") or {}
    phase = next((name for name in datasets if str(name).split("_")[0] in ("val", "test")), None)
    if phase is None:
        notes.append("no images: the options of the run have no block 'datasets: val'")
        return None
    options = copy.deepcopy(dict(datasets[phase]))
    for key in ("dataroot_gt", "dataroot_lq", "meta_info_file"):
        if options.get(key):
            options[key] = str(experiment.path(options[key]))
    options |= {"phase": "val", "scale": int(experiment.options.get("scale", 1))}
    try:
        dataset = DATASET_REGISTRY.get(options["type"])(options)
        if isinstance(getattr(dataset, "paths", None), list):
            dataset.paths.sort(key=str)  # BasicSR leaves the order to the file system
            check_images_of(dataset.paths[0], phase)
        first = dataset[0]
    except (DataError, AssertionError, AttributeError, IndexError, KeyError, OSError, TypeError, ValueError) as error:
        notes.append(f"no images: '{phase}' cannot be read ({str(error).splitlines()[0] if str(error) else 'empty'})")
        return None
    if "gt" not in first:
        notes.append(f"no images: '{phase}' has no ground truth to compare with")
        return None
    return options, dataset


def _metrics(options: Mapping[str, Any], scale: int) -> dict[str, dict[str, Any]]:
    """Return the metrics of the options, or PSNR and SSIM as the papers take them."""
    given = (options.get("val") or {}).get("metrics")
    if given:
        return {
            str(name): {key: value for key, value in metric.items() if key != "better"}
            for name, metric in given.items()
            if metric.get("type") in ("calculate_psnr", "calculate_ssim")
        }
    return {
        name: {"type": f"calculate_{name}", "crop_border": scale, "test_y_channel": True} for name in ("psnr", "ssim")
    }


def _float_network(experiment: Experiment, notes: list[str]) -> nn.Module | None:
    """Return the float network that the student started from, or its teacher, if that is the same network."""
    paths = experiment.options.get("path") or {}
    teacher = () if experiment.options.get("network_t") else ("pretrain_network_t",)
    for key in (*teacher, "pretrain_network_g"):
        if not paths.get(key):
            continue
        try:
            network = build_float(experiment.metadata["network"])
            checkpoint.load_weights(
                network, experiment.path(paths[key]), param_key=paths.get(f"param_key_{key[-1]}", "params")
            )
        except SRQError as error:
            notes.append(f"no float network: {error}")
            return None
        return network.eval()
    notes.append("no float network: the options of the run have no 'path: pretrain_network_g'")
    return None


def _upscale(network: nn.Module | None, low: torch.Tensor, scale: int) -> Pixels:
    if network is None:
        from basicsr.utils.matlab_functions import imresize

        return _pixels(imresize(low[0], scale))
    return _pixels(network(low)[0])


def _pixels(image: torch.Tensor) -> Pixels:
    """Return (3, H, W) in [0, 1], RGB, as uint8 (H, W, 3), rounded."""
    return np.ascontiguousarray(image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy())


def _image_report(
    name: str, outputs: Mapping[str, Pixels], high: Pixels, metrics: Mapping[str, Mapping[str, Any]]
) -> ImageReport:
    from basicsr.metrics import calculate_metric

    scores = {
        method: {
            metric: float(calculate_metric({"img": image[..., ::-1], "img2": high[..., ::-1]}, dict(options)))
            for metric, options in metrics.items()
        }
        for method, image in outputs.items()
    }
    reference = outputs.get("float", outputs["bicubic"])
    apart = np.abs(outputs["quantized"].astype(np.int16) - reference.astype(np.int16)).mean(2)
    top, left = max(_corners(apart.shape), key=lambda at: apart[at[0] :, at[1] :][:CROP, :CROP].sum())
    here = (slice(top, top + CROP), slice(left, left + CROP))
    crops = {method: image[here] for method, image in {"HR": high, **outputs}.items()}
    every = max(1, outputs["quantized"].shape[1] // 480)
    return ImageReport(name, scores, (top, left), crops, apart[here], outputs["quantized"][::every, ::every])


def _corners(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield the corners of all crops on a raster of half a crop."""
    for top in range(0, max(1, shape[0] - CROP + 1), CROP // 2):
        for left in range(0, max(1, shape[1] - CROP + 1), CROP // 2):
            yield top, left


def mean_scores(comparison: Comparison) -> dict[str, dict[str, float]]:
    """Return ``{method: {metric: mean over the images}}``."""
    methods = comparison.images[0].scores if comparison.images else {}
    return {
        method: {
            metric: float(np.mean([image.scores[method][metric] for image in comparison.images]))
            for metric in comparison.metrics
        }
        for method in methods
    }
