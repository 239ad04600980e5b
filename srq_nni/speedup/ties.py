"""Why the output of an engine differs from the integer simulator: the codes that differ, and how near to ties.

A value halfway between two codes may get either: floating-point layers before it round their sums in the order of the
kernel, and one such code changes a part of the image. What an engine chose is read from the engine itself, see
``engine_codes``. The simulator then runs with these codes in place of its own; if nothing but ties differs, its output
is that of the engine.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from srq_nni.errors import ExportError
from srq_nni.quantization.grid import IntegerGrid
from srq_nni.speedup.engine_codes import Chosen, read_codes
from srq_nni.speedup.engine_rules import get_rules
from srq_nni.speedup.engines import engine_of
from srq_nni.speedup.export import export_onnx
from srq_nni.speedup.markers import RangeGrid, TraceableGate
from srq_nni.speedup.simulator import IntegerActivation2d, integer_simulator
from srq_nni.speedup.table import text_table

READABLE = ("openvino", "onnxruntime")
TOLERANCE = 0.01  # grey levels
GATE = ".gate"
SAME_STEP = 1e-5  # relative; float32 operations of a gate leave less
NEAR = 1e-3  # steps between two codes; float32 sums of a layer leave less


@dataclass(frozen=True)
class OtherCodes:
    """Codes of one quantizer for which the engine chose others than the simulator, given the same codes before it.

    Attributes:
        name: place of the quantizer, such as ``body.0.conv1.input``; ``.input.gate`` for the gate of it.
        count: how many of its codes differ; of a gate, how many images have another step.
        distance: how far the value of one of them is, at most, from those that get the code of the engine, in steps
            between two codes; of a gate, how far the nearest value in it is from a tie.
    """

    name: str
    count: int
    distance: float


@dataclass(frozen=True)
class Explanation:
    """An engine against the integer simulator on some images; ``str()`` is a sentence, and a table of what differs.

    Attributes:
        engine: name of the engine.
        largest: difference between the two in grey levels, before rounding.
        remaining: the same with the codes of the engine in the simulator.
        others: quantizers whose codes differ, in the order of registration.
        lossy: layers whose products this engine rounds or saturates on this CPU, see ``byte_products``.
    """

    engine: str
    largest: float
    remaining: float
    others: tuple[OtherCodes, ...]
    lossy: tuple[str, ...] = ()

    @property
    def distance(self) -> float:
        """How far any value whose code differs is from a tie, at most, in steps between two codes."""
        return max((found.distance for found in self.others), default=0.0)

    @property
    def kind(self) -> str:
        """What the difference is.

        ``exact``: below 0.01 grey levels. ``tie``: codes at ties are all that differs. ``lossy``: more than that does,
        and there are lossy layers. ``unexplained``: more than that does.
        """
        if self.largest < TOLERANCE:
            return "exact"
        if self.remaining < TOLERANCE and self.distance <= NEAR:
            return "tie"
        return "lossy" if self.lossy else "unexplained"

    def __str__(self) -> str:
        rows = [(found.name, str(found.count), f"{found.distance:.2g}") for found in self.others]
        table = text_table(("quantizer", "other codes", "steps from a tie"), rows)
        return (
            f"{self.engine}: {self.kind}, largest difference {self.largest:.2g} grey levels, {self.remaining:.2g} with "
            "the codes of the engine"
        ) + (f"\n{table}" if rows else "")


@torch.no_grad()
def explain_difference(
    model: nn.Module | str | os.PathLike[str],
    images: torch.Tensor | Sequence[torch.Tensor],
    engine: str = "openvino",
    *,
    value_range: float = 1.0,
    threads: int | None = None,
) -> Explanation:
    """Export ``model``, run it on ``engine`` and in the simulator, and find the codes by which the two differ.

    Args:
        model: quantized network, or the path of a checkpoint.
        images: (N, C, H, W), float, in the range of the training; several are run one after the other.
        engine: ``openvino`` or ``onnxruntime``.
        value_range: value of white, 255 grey levels.
        threads: of the engine.

    Raises:
        ExportError: for another engine, or as ``export_onnx`` and the engine raise it.
    """
    if get_rules(engine).name not in READABLE:
        raise ExportError(f"engine: '{engine}' does not show its codes; give one of {', '.join(READABLE)}")
    batches = [images] if isinstance(images, torch.Tensor) else list(images)
    if not isinstance(model, nn.Module):
        from srq_nni import checkpoint

        model = checkpoint.load(model)
    simulator = integer_simulator(model, engine=engine, sample=batches[0][:1])
    shape: Any = tuple(batches[0].shape)
    largest = remaining = 0.0
    codes = _EngineCodes(simulator)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, path, engine, sample=batches[0][:1])
        plain = engine_of(engine, path, shape, threads=threads)
        outputs = [plain.outputs(batch)[0] for batch in batches]
        chosen = read_codes(path, engine, batches, outputs, threads=threads)
    for batch, output, found in zip(batches, outputs, chosen, strict=True):
        image = torch.from_numpy(output).double()
        largest = max(largest, float((image - simulator(batch)).abs().max()))
        remaining = max(remaining, float((image - codes.run(batch, found)).abs().max()))
    lossy = plain.precision_report().inexact
    levels = 255 / value_range
    return Explanation(engine, largest * levels, remaining * levels, codes.others, lossy)


class _EngineCodes:
    """Makes the quantizers of a simulator write the codes of the engine, and notes which are others than their own."""

    def __init__(self, simulator: nn.Module) -> None:
        self._simulator = simulator
        self._found: dict[str, OtherCodes] = {}
        self._left: dict[str, list[Chosen]] = {}
        self._taken: list[tuple[torch.Tensor, IntegerGrid | None, Chosen]] = []
        modules = {path.removesuffix("_quantizer"): module for path, module in simulator.named_modules()}
        self._quantizers = {name: module for name, module in modules.items() if isinstance(module, IntegerActivation2d)}

    @property
    def others(self) -> tuple[OtherCodes, ...]:
        """What was noted in all runs, in the order of registration."""
        names = [place for name in self._quantizers for place in (name + GATE, name)]
        return tuple(self._found[name] for name in names if name in self._found)

    def run(self, images: torch.Tensor, chosen: dict[str, list[Chosen]]) -> torch.Tensor:
        """Return the output of the simulator with what the engine chose, by quantizer and run of it."""
        self._left, self._taken = chosen, []
        handles = [
            quantizer.register_forward_hook(partial(self._replace, name))
            for name, quantizer in self._quantizers.items()
        ]
        try:
            output: torch.Tensor = self._simulator(images)
        finally:
            for handle in handles:
                handle.remove()
        return output

    def _replace(
        self, name: str, quantizer: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor
    ) -> torch.Tensor | None:
        assert isinstance(quantizer, IntegerActivation2d)
        (x,) = args
        chosen = self._take(name, quantizer, x)
        if chosen is None:
            return None
        own = quantizer.grid_of(x.float())
        step, low, high = chosen.grid or own
        if chosen.grid is not None:
            other = (step / own[0] - 1).abs() > SAME_STEP
            if other.any():
                assert quantizer.image_codes is not None
                self._note(name + GATE, _distances_in_gate(quantizer.image_codes.gate, x.float())[other.flatten()])
        codes = torch.div(x.float(), step).round_().clamp_(low, high)
        differs = chosen.codes != codes
        if differs.any():
            ratio = x.double() / step.double()
            self._note(name, _steps_from(ratio, chosen.codes.double(), low, high)[differs])
        return quantizer.dequantize(chosen.codes, step)

    def _note(self, name: str, distances: torch.Tensor) -> None:
        before = self._found.get(name, OtherCodes(name, 0, 0.0))
        distance = max(before.distance, float(distances.max()))
        self._found[name] = OtherCodes(name, before.count + len(distances), distance)

    def _take(self, name: str, quantizer: IntegerActivation2d, x: torch.Tensor) -> Chosen | None:
        """Return what the engine chose for ``x``, None if the file has no codes of that shape.

        The file quantizes a tensor once for all who read it on the same grid, and may quantize parts of it before.
        """
        for tensor, grid, chosen in self._taken:
            if tensor is x and grid is not None and grid == quantizer.grid:
                return chosen
        left = self._left.get(name, [])
        place = next((place for place, chosen in enumerate(left) if chosen.codes.shape == x.shape), None)
        if place is None:
            return None
        self._taken.append((x, quantizer.grid, left.pop(place)))
        return self._taken[-1][2]


def _distances_in_gate(gate: TraceableGate, x: torch.Tensor) -> torch.Tensor:
    """Return how far the nearest value inside ``gate`` is from a tie, in steps, for each image of ``x``: (N,)."""
    nearest: list[torch.Tensor] = []

    def look(grid: nn.Module, args: tuple[torch.Tensor]) -> None:
        assert isinstance(grid, RangeGrid)
        ratio = args[0].double() / grid.of(args[0])[0].double()
        distance = (ratio - ratio.floor() - 0.5).abs().flatten(1).amin(1)
        nearest.append(distance if grid.per_sample else distance.amin().expand_as(distance))

    handles = [module.register_forward_pre_hook(look) for module in (gate.means, gate.hidden)]
    try:
        gate(x)
    finally:
        for handle in handles:
            handle.remove()
    return torch.minimum(*nearest)


def _steps_from(ratio: torch.Tensor, codes: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Return how far each ``ratio`` of value and step is from those that round to ``codes``, infinite for no code."""
    below = torch.where(codes > low, codes - 0.5 - ratio, 0.0)
    above = torch.where(codes < high, ratio - codes - 0.5, 0.0)
    none = (codes < low) | (codes > high)
    return torch.where(none, torch.inf, torch.maximum(below, above).clamp_min(0))
