"""Numbers over time: losses and metrics from BasicSR's log, bounds and gates from TensorBoard or the checkpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from srq_nni import checkpoint
from srq_nni.report.experiment import Experiment

Series = dict[int, float]  # iteration -> value
_GROUPS = ("network", "bounds", "gates")  # in the order of compression.optimizer.parameter_groups
_TRAINING = re.compile(r"\[epoch:\s*\d+, iter:\s*([\d,]+), lr:\(([^)]*)\)\].*?\(.*?\)\](.*)$")
_VALUE = re.compile(r"(\S+): (-?[\d.]+(?:e[-+]?\d+)?|nan|-?inf)")
_VALIDATION = re.compile(r"INFO: Validation (.+)$")
_METRIC = re.compile(r"^\s*# (\S+): (-?[\d.]+|nan|-?inf)")
_QUANTIZERS = re.compile(r"^(.+)\.(\w+?)_quantizer\.(alpha|upper|lower)$")


@dataclass
class Curves:
    """Curves of one run, each a dictionary iteration -> value.

    Attributes:
        losses: by their name in the log (``l_pix``, ``l_skt``, ..).
        rates: learning rates of ``network``, ``bounds`` and, with DDTB, ``gates``.
        metrics: by ``DATASET METRIC``.
    """

    losses: dict[str, Series] = field(default_factory=dict)
    rates: dict[str, Series] = field(default_factory=dict)
    metrics: dict[str, Series] = field(default_factory=dict)


def read_logs(logs: Iterable[Path], validate_every: int | None = None) -> Curves:
    """Return the curves of text logs; where a run was resumed, the later log counts.

    Args:
        logs: files in the order they were written.
        validate_every: ``val: val_freq``; the log does not say at which iteration a validation was, so it is taken to
            be the next multiple after the last iteration that was printed.
    """
    curves = Curves()
    for log in logs:
        iteration, dataset = 0, ""
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if match := _TRAINING.search(line):
                iteration, dataset = int(match[1].replace(",", "")), ""
                rates = [float(part) for part in match[2].split(",") if part.strip()]
                for group, rate in zip(_GROUPS, rates, strict=False):
                    curves.rates.setdefault(group, {})[iteration] = rate
                for name, value in _VALUE.findall(match[3]):
                    curves.losses.setdefault(name, {})[iteration] = float(value)
            elif match := _VALIDATION.search(line):
                dataset = match[1].strip()
            elif dataset and (match := _METRIC.search(line)):
                at = math.ceil(iteration / validate_every) * validate_every if validate_every else iteration
                curves.metrics.setdefault(f"{dataset} {match[1]}", {})[at] = float(match[2])
            elif "End of training" in line:
                break  # BasicSR validates once more here
    return curves


def quantizer_curves(experiment: Experiment) -> dict[str, dict[str, Series]]:
    """Return ``{kind: {layer: series}}`` with kinds ``alpha``, ``upper``, ``lower``, ``gate_upper``, ``clipped``, ...

    From TensorBoard's files where the run wrote them, else bounds alone, from its checkpoints.
    """
    found = _from_events(experiment.events) if experiment.events.is_dir() else {}
    return found or _from_checkpoints(experiment.checkpoints)


def _from_events(folder: Path) -> dict[str, dict[str, Series]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 1000})
    events.Reload()
    curves: dict[str, dict[str, Series]] = {}
    for tag in events.Tags()["scalars"]:
        kind, _, layer = tag.partition("/")
        curves.setdefault(kind, {})[layer] = {event.step: float(event.value) for event in events.Scalars(tag)}
    return curves


def _from_checkpoints(checkpoints: Iterable[tuple[int, Path]]) -> dict[str, dict[str, Series]]:
    curves: dict[str, dict[str, Series]] = {}
    for iteration, path in checkpoints:
        state = checkpoint.state_dict_of(checkpoint.read(path), path, "params")
        for layer, kind, value in _bounds(state):
            curves.setdefault(kind, {}).setdefault(layer, {})[iteration] = value
    return curves


def _bounds(state: Mapping[str, torch.Tensor]) -> Iterable[tuple[str, str, float]]:
    for key, value in state.items():
        if match := _QUANTIZERS.match(key):
            yield f"{match[1]}.{match[2]}", match[3], float(value)
