"""The measurement: variants in turn, wall and CPU time of each call, and the difference to the integer simulator."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from srq_nni.errors import ExportError, OptionError
from srq_nni.progress import track
from srq_nni.speedup.bench.report import BenchReport, Difference, Row
from srq_nni.speedup.bench.variants import Subject, Variant, subject_of
from srq_nni.speedup.engine_rules import get_rules
from srq_nni.speedup.engines import engines_here
from srq_nni.speedup.machine import this_machine
from srq_nni.speedup.openvino import ModelSpeedupOpenVINO

COMPARED = 96  # pixels a side of the image on which engines and simulator are compared, at most


@dataclass
class _Samples:
    wall: list[float]
    cpu: list[float]


def benchmark(
    model: nn.Module | str,
    *,
    engines: Sequence[str] | None = None,
    size: tuple[int, int] = (128, 128),
    repeats: int = 9,
    threads: int | None = 1,
    name: str | None = None,
) -> BenchReport:
    """Measure one network in float32, bfloat16 and INT8 on every engine, in turns (A B C A B C ...).

    Args:
        model: network with or without quantizers, checkpoint of ours, or ONNX file. The float network beside integers
            is the same one without quantizers.
        engines: by name; by default those that run here.
        size: (height, width) of the image, a photograph.
        repeats: rounds that count, after one that does not.
        threads: of the engines; None leaves the choice to them.
        name: of the network in the report, in place of the file's.

    Raises:
        OptionError: for a size, a number or an engine that is not allowed.
        ExportError, CheckpointError: if the model cannot be read, or an engine does not run it.
    """
    if repeats < 1:
        raise OptionError(f"repeats: {repeats} is not allowed; give a number from 1")
    if len(size) != 2 or min(size) < 1:
        raise OptionError(f"size: {size} is not allowed; give height and width in pixels")
    chosen = [get_rules(engine).name for engine in engines] if engines else list(engines_here())
    if not chosen:
        raise ExportError('there is no engine to measure; install one with: pip install "srq-nni[openvino]"')
    with tempfile.TemporaryDirectory() as folder:
        subject = subject_of(
            model, Path(folder), engines=list(dict.fromkeys(chosen)), size=size, threads=threads, name=name
        )
    image = photograph(subject.channels, size) * subject.value_range
    samples = _in_turns(subject, image, repeats)
    small = photograph(subject.channels, (min(size[0], COMPARED), min(size[1], COMPARED))) * subject.value_range
    expected: dict[int, torch.Tensor] = {}
    compared = track(subject.variants, "Comparing with the simulator", "variant")
    rows = tuple(
        _row(variant, samples.get(number), small, subject, expected) for number, variant in enumerate(compared)
    )
    return BenchReport(subject.name, size, threads, repeats, this_machine(), rows)


def photograph(channels: int, size: tuple[int, int]) -> torch.Tensor:
    """Return a part of scikit-image's astronaut (1, C, H, W) in [0, 1], mirrored at its edges where it is too small."""
    from skimage import data

    pixels = data.astronaut()[:, 60:, :channels]
    missing = [(0, max(wanted - have, 0)) for wanted, have in zip(size, pixels.shape, strict=False)]
    pixels = np.pad(pixels, [*missing, (0, 0)], "symmetric")[: size[0], : size[1]]
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 255


def difference(output: torch.Tensor, expected: torch.Tensor, white: float = 1.0) -> Difference:
    """Compare two images (N, C, H, W) in which white is ``white``, before rounding and after it."""
    errors = (output.double() - expected.double()) * (255 / white)
    mean_square = float(errors.square().mean())
    levels = [(image.double() * (255 / white)).clamp(0, 255).round() for image in (output, expected)]
    return Difference(
        10 * math.log10(255**2 / mean_square) if mean_square else math.inf,
        float(errors.abs().max()),
        float((levels[0] != levels[1]).double().mean()),
    )


def _in_turns(subject: Subject, image: torch.Tensor, repeats: int) -> dict[int, _Samples]:
    samples = {number: _Samples([], []) for number, variant in enumerate(subject.variants) if variant.speedup}
    for repetition in track(range(repeats + 1), f"Measuring {subject.name}", "round"):
        for number, taken in samples.items():
            speedup = subject.variants[number].speedup
            assert speedup is not None
            start = time.process_time()
            _, seconds = speedup.inference(image)
            cpu = time.process_time() - start
            if repetition:  # the first round warms up
                taken.wall.append(seconds)
                taken.cpu.append(cpu)
    return samples


def _row(
    variant: Variant,
    samples: _Samples | None,
    image: torch.Tensor,
    subject: Subject,
    expected: dict[int, torch.Tensor],
) -> Row:
    if variant.speedup is None or samples is None:
        return Row(variant.engine, variant.precision, variant.file_bytes, (variant.missing,))
    kernels = variant.speedup.precision_report()
    notes = list(kernels.notes)
    if isinstance(variant.speedup, ModelSpeedupOpenVINO) and "bfloat16" in variant.precision:
        ran = variant.speedup.floats_ran_in
        if ran != variant.speedup.float_precision:
            notes.insert(0, f"this CPU has no bfloat16: OpenVINO ran {ran}")
    measured = None
    if variant.reference is not None:
        key = id(variant.reference)
        if key not in expected:
            with torch.no_grad():
                expected[key] = variant.reference(image)
        measured = difference(variant.speedup.inference(image)[0], expected[key], subject.value_range)
    counts: dict[str, int] = {}
    for _, precision, kernel in kernels.kernels:
        counts[f"{kernel} ({precision})"] = counts.get(f"{kernel} ({precision})", 0) + 1
    return Row(
        variant.engine,
        variant.precision,
        variant.file_bytes,
        tuple(notes),
        wall=statistics.median(samples.wall),
        cpu=statistics.median(samples.cpu),
        fastest_cpu=min(samples.cpu),
        walls=tuple(samples.wall),
        cpus=tuple(samples.cpu),
        convolutions=len(kernels.kernels),
        integer_convolutions=kernels.integer_convolutions,
        kernels=counts,
        difference=measured,
    )
