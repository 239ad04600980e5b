"""How long training takes: a few steps of the very model that will train, on random images, without writing a file."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from basicsr.utils import logger as basicsr_logger
from basicsr.utils.registry import MODEL_REGISTRY

from srq_nni.compression.options import QuantizationOptions
from srq_nni.compression.phases import phase_at
from srq_nni.models.quant_sr_model import QuantSRModel
from srq_nni.progress import bar
from srq_nni.speedup.sources import default_sample
from srq_nni.summary.rows import PhaseTime, TrainingTime

PATIENCE = 30.0  # seconds that all measured steps may take; beyond, a part of the batch is measured
OBSERVING = 3.0  # how many times a step with its backward pass takes the time of one that only observes


class NotMeasured(Exception):  # noqa: N818 - a finding, no error of the user's
    """Why the time of a training could not be measured."""


class _Probed(QuantSRModel):
    """The model without anything that it reads from files: weights do not change how long a step takes."""

    def load_teacher(self) -> None:
        """Leave the teacher's first weights."""


def probe_training(opt: Mapping[str, Any], *, patience: float = PATIENCE) -> TrainingTime:
    """Measure two steps of each phase of the training that ``opt`` describes; the second one counts.

    Args:
        opt: all options of a training run; ``opt`` is not changed, no file of it is read and none is written.
        patience: seconds that the measured steps may take together, about.

    Raises:
        NotMeasured: if the options describe no training, or the model does not train as they say.
    """
    train, images = opt.get("train"), (opt.get("datasets") or {}).get("train") or {}
    if not isinstance(train, Mapping) or not isinstance(images, Mapping) or "gt_size" not in images:
        raise NotMeasured("the options have no 'train' and 'datasets: train' with a gt_size")
    if train.get("perceptual_opt"):
        raise NotMeasured("perceptual_opt would read or fetch the weights of a VGG")
    state = torch.random.get_rng_state()
    try:
        with _quiet():
            return _measure(_Stepper(opt), int(images.get("batch_size_per_gpu", 1)), patience)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotMeasured(f"a step of {opt.get('model_type')} failed ({reason})") from error
    finally:
        torch.random.set_rng_state(state)


class _Stepper:
    """The model of a training run, and random batches for it."""

    def __init__(self, opt: Mapping[str, Any]) -> None:
        own = copy.deepcopy(dict(opt))
        own["num_gpu"] = torch.cuda.device_count() if own["num_gpu"] == "auto" else own["num_gpu"]
        own |= {"is_train": True, "dist": False, "rank": 0, "world_size": 1}
        own["path"] = {}
        own["train"].pop("equalize_iter", None)  # which reads images, before the steps that count
        kind = MODEL_REGISTRY.get(own["model_type"])
        self.model: Any = (_Probed if kind is QuantSRModel else kind)(own)
        self.device = self.model.device
        self.size, self.scale = int(own["datasets"]["train"]["gt_size"]), int(own["scale"])
        self.phases = _phases(self.model, int(own["train"]["total_iter"]))
        sample = default_sample(self.model.net_g, (8, 8))
        self.channels = sample.shape[1]

    def seconds(self, iteration: int, images: int) -> float:
        """Return the time of one step on random images in [0, 1]."""
        low = self.size // self.scale
        self.model.feed_data(
            {
                "lq": torch.rand(images, self.channels, low, low),
                "gt": torch.rand(images, self.channels, self.size, self.size),
            }
        )
        self._wait()
        start = time.perf_counter()
        self.model.optimize_parameters(iteration)
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _measure(stepper: _Stepper, batch: int, patience: float) -> TrainingTime:
    first = stepper.phases[0]
    with bar("Measuring training steps", 2 + 2 * len(stepper.phases), "step") as progress:

        def seconds(iteration: int, images: int) -> float:
            measured = stepper.seconds(iteration, images)
            progress.update()
            return measured

        seconds(first[1], 1)
        single = seconds(first[1], 1) * (OBSERVING if first[0] == "observe" else 1)
        images = max(1, int(patience / (single * 2 * len(stepper.phases))))
        images = batch if 2 * images > batch else images
        phases = []
        for name, start, iterations in stepper.phases:
            seconds(start, images)
            measured = seconds(start + (iterations > 1), images)
            phases.append(PhaseTime(name, iterations, measured * batch / images))
    return TrainingTime(tuple(phases), str(stepper.device), batch, images)


def _phases(model: Any, total: int) -> list[tuple[str, int, int]]:
    """Return (name, first iteration, number of iterations) of each phase that the run reaches."""
    options = getattr(model, "quantization", None)
    if not isinstance(options, QuantizationOptions):
        return [("train", 1, total)]
    ends = (options.calibration_iters, options.calibration_iters + options.static_iters)
    starts = [1, *(end + 1 for end in ends)] if options.quantizer == "ddtb" else [1, ends[0] + 1]
    starts = sorted({start for start in starts if start <= total})
    lengths = [following - start for start, following in zip(starts, [*starts[1:], total + 1], strict=True)]
    return [(phase_at(start, options), start, length) for start, length in zip(starts, lengths, strict=True)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Let BasicSR log nothing, and leave its logger as it was for the pipeline that sets it up."""
    before = dict(basicsr_logger.initialized_logger)
    handlers = list(logging.getLogger("basicsr").handlers)
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)
        basicsr_logger.initialized_logger.clear()
        basicsr_logger.initialized_logger.update(before)
        logging.getLogger("basicsr").handlers[:] = handlers
