"""From a cell to its row: train it if it trains, then measure it on the benchmark sets."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import nni_quantizers
import torch
from cells import NETWORKS, PROTOCOL, Cell, Network
from float_networks import float_network, float_weights
from images import Pair, Patches, centres, read_pairs
from measure import Cost, Upscaler, bicubic, cost, evaluating, network, own_widths, score
from pipeline import Progress, options, train
from recipes import RECIPES
from results import Row

from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import insert_quantizers
from srq_nni.compression.options import options_from
from srq_nni.equalization import equalize
from srq_nni.quantization.layers import calibrate
from srq_nni.speedup.machine import this_machine

CALIBRATION_BATCHES = 20
QUICK_SIDE = 96  # low pixels of the validation crops that make a run's curve
NO_COST = Cost(0.0, float("nan"), float("nan"), float("nan"))


def training_images(data: Path, scale: int) -> list[Pair]:
    """Return the training images of protocol P."""
    return [
        pair
        for kind in ("crops128", "photos480")
        for pair in read_pairs(data / f"train/{kind}_HR", data / f"train/{kind}_LR_bicubic/X{scale}", scale)
    ]


def validation_images(data: Path, scale: int) -> list[Pair]:
    """Return the images on which settings may be chosen."""
    return read_pairs(data / "val/HR", data / f"val/LR_bicubic/X{scale}", scale)


def benchmark_sets(data: Path, scale: int) -> dict[str, list[Pair]]:
    """Return Set5 and Set14, on which nothing may be chosen."""
    return {
        name: read_pairs(data / f"benchmark/{name}/HR", data / f"benchmark/{name}/LR_bicubic/X{scale}", scale)
        for name in ("Set5", "Set14")
    }


def finish(cell: Cell, data: Path, folder: Path) -> Row:
    """Train a cell to its end and measure it."""
    described = NETWORKS[cell.network]
    if cell.method == "bicubic":
        return _row(cell, bicubic(described.scale), NO_COST, Progress(), data)
    model, progress = finished(cell, data, folder)
    widths: dict[str, tuple[int, int]] = {}
    if cell.method in nni_quantizers.QUANTIZERS:
        widths = {name: (cell.bits, cell.bits) for name, _ in model.named_modules() if re.match(described.body, name)}
    elif cell.method != "float":
        widths = own_widths(model.eval())
    with evaluating(model):
        return _row(cell, network(model), cost(model, described.scale, widths), progress, data)


def finished(cell: Cell, data: Path, folder: Path) -> tuple[torch.nn.Module, Progress]:
    """Return the network of a cell, not ``bicubic``: trained to its end, or read where it has been."""
    described = NETWORKS[cell.network]
    if cell.method == "float":
        return float_network(described, float_weights(described, data, folder)), Progress()
    if cell.method == "ptq":
        return _post_training(cell, described, data, folder), Progress()
    return _trained(cell, described, data, folder)


def _post_training(cell: Cell, described: Network, data: Path, folder: Path) -> torch.nn.Module:
    """Quantize without training, from ``CALIBRATION_BATCHES`` of training patches."""
    weights = float_weights(described, data, folder)
    patches = Patches(
        training_images(data, described.scale), described.scale, PROTOCOL.patch, described.batch, cell.seed
    )
    weights = equalized_weights(cell, described, weights, folder, patches)
    model = insert_quantizers(float_network(described, weights), options_from(quantization_of(cell)))
    calibrate(model, (patches.batch(index)["lq"] for index in range(1, CALIBRATION_BATCHES + 1)))
    return model


def quantization_of(cell: Cell) -> dict[str, Any]:
    """Return the ``quantization`` block of a cell, without phases; untrained grids are DDTB's if none is named."""
    method = "ddtb" if cell.method == "ptq" else cell.method
    return {"quantizer": method, "bits": cell.bits, "wiring": cell.wiring, **RECIPES[cell.recipe].quantization}


def _trained(cell: Cell, described: Network, data: Path, folder: Path) -> tuple[torch.nn.Module, Progress]:
    scale = described.scale
    weights = float_weights(described, data, folder)
    patches = Patches(training_images(data, scale), scale, PROTOCOL.patch, described.batch, cell.seed)
    validation = centres(validation_images(data, scale), scale, QUICK_SIDE)
    if cell.method in nni_quantizers.QUANTIZERS:
        return nni_quantizers.train(cell, described, weights, folder, patches, validation)
    weights = equalized_weights(cell, described, weights, folder, patches)
    name = RECIPES[cell.recipe].teacher
    teacher = (NETWORKS[name], float_weights(NETWORKS[name], data, folder)) if name else None
    opt = options(cell, described, weights, folder, teacher=teacher)
    return train(cell, opt, folder, patches, validation, scale)


def equalized_weights(cell: Cell, described: Network, weights: Path, folder: Path, patches: Patches) -> Path:
    """Return the file of a cell's float weights: in the bases that round best where its recipe equalizes them.

    Made once into ``folder``; its iterations see the patches that training begins with.
    """
    done, iterations = folder / "equalized.pth", RECIPES[cell.recipe].equalized
    if not iterations:
        return weights
    if not done.exists():
        model = float_network(described, weights)
        batches = [patches.batch(iteration)["lq"] for iteration in range(1, iterations + 1)]
        report = equalize(model, quantization_of(cell), batches, iterations, untrained=cell.method == "ptq")
        print(f"{cell.name}: {report}", flush=True)
        checkpoint.save({"params": model.state_dict()}, done)
    return done


def _row(cell: Cell, upscale: Upscaler, price: Cost, progress: Progress, data: Path) -> Row:
    scale = NETWORKS[cell.network].scale
    machine = this_machine()
    set5, set14 = (score(upscale, pairs, scale) for pairs in benchmark_sets(data, scale).values())
    return Row(
        cell=cell.name,
        network=cell.network,
        method=cell.method,
        wiring=cell.wiring if cell.bits < 32 else "",
        recipe=cell.recipe if cell.bits < 32 else "",
        bits=cell.bits,
        seed=cell.seed,
        iterations=progress.iteration,
        set5_psnr=set5.psnr,
        set5_ssim=set5.ssim,
        set14_psnr=set14.psnr,
        set14_ssim=set14.ssim,
        val_psnr=score(upscale, validation_images(data, scale), scale).psnr,
        minutes=progress.seconds / 60,
        commit=machine.commit or "unknown",
        date=machine.date,
        machine=f"{machine.processor} ({machine.instruction_set}), {machine.cores} cores",
        **dataclasses.asdict(price),
    )
