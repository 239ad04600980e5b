"""The search: measure every unit alone, choose, measure the choice, and mend it until the limit really holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from srq_nni.errors import OptionError
from srq_nni.progress import bar, track
from srq_nni.search.bank import Key
from srq_nni.search.budget import UNITS, Budget
from srq_nni.search.choose import choose
from srq_nni.search.measure import Measurement
from srq_nni.search.setup import Problem
from srq_nni.search.units import Assignment, with_bits
from srq_nni.summary.rows import Summary

DECIBELS = 10 / np.log(10)  # d(PSNR) = DECIBELS * d(MSE) / MSE
CHECKS = 12  # measurements of whole assignments in each of the two stages of mending
CLOSE = 1.01  # limits of the sum of single losses between which no further one is tried


@dataclass(frozen=True)
class Point:
    """An assignment and what it is worth.

    Attributes:
        assignment: unit -> bits.
        psnr: in dB, measured on the images.
        loss: against the float network, in dB; negative if it gained.
        summary: with these bits.
    """

    assignment: dict[str, int]
    psnr: float
    loss: float
    summary: Summary


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        problem: what it searched.
        budget: the limit.
        float_psnr: of the float network on the images, in dB.
        alone: loss in dB of each unit quantized alone, (units, widths), in the order of the problem.
        best: the assignment.
        uniform: the same bits everywhere, for each width.
        tried: every whole assignment that was measured.
        gates: sites of DDTB's activations that should get a gate.
    """

    problem: Problem
    budget: Budget
    float_psnr: float
    alone: np.ndarray
    best: Point
    uniform: dict[int, Point]
    tried: tuple[Point, ...]
    gates: tuple[Key, ...]


def search_bits(
    problem: Problem, budget: Budget, *, spread: Callable[[Problem], None] | None = None, checks: int = CHECKS
) -> SearchResult:
    """Return the bits of each unit within ``budget``.

    Each unit is quantized alone at each width; what it adds to the squared error against the truth, relative to that
    of the float network, is its loss. Sums of losses choose (``choose``); the choice is measured, and the limit of the
    sum is moved until the measured one holds. Then single units are changed as long as measurement approves.

    Args:
        problem: from ``problem_from``.
        budget: the limit.
        spread: measures the units elsewhere first and puts results into ``problem.measurer.results``.
        checks: measurements of whole assignments in each stage.

    Raises:
        OptionError: if no assignment keeps the limit; the message says what the nearest one costs.
    """
    return _Search(problem, budget, checks).run(spread)


class _Search:
    def __init__(self, problem: Problem, budget: Budget, checks: int) -> None:
        self.problem, self.budget, self.checks = problem, budget, checks
        self.names = [unit.name for unit in problem.units]
        self.float = problem.measurer.prepare()
        self.points: dict[tuple[int, ...], Point] = {}
        self.added = np.zeros((len(self.names), len(problem.widths), len(self.float.noise)))
        self.costs = self._costs()

    def run(self, spread: Callable[[Problem], None] | None) -> SearchResult:
        if spread is not None:
            spread(self.problem)
        self._measure_alone()
        indices = range(len(self.problem.widths))
        most = len(indices) + (2 * self.checks if self.budget.kind == "loss" else 1 + self.checks)
        with bar("Checking whole assignments", most, "assignment") as self.checked:
            uniform = {self.problem.widths[i]: self.point(np.full(len(self.names), i)) for i in indices}
            self._check_possible(uniform)
            best = self._within_loss() if self.budget.kind == "loss" else self._within_cost(list(uniform.values()))
        alone = self._decibels(self.added)
        return SearchResult(
            self.problem,
            self.budget,
            self.float.psnr,
            alone,
            best,
            uniform,
            tuple(self.points.values()),
            self.problem.measurer.bank.gates(self.problem.sites(best.assignment), self.problem.gate_ratio),
        )

    def point(self, choice: np.ndarray) -> Point:
        """Return the measured point of a choice of widths."""
        key = tuple(int(index) for index in choice)
        if key not in self.points:
            assignment = {name: self.problem.widths[index] for name, index in zip(self.names, key, strict=True)}
            measured = self.problem.measurer.measure(self.problem.sites(assignment))
            summary = with_bits(self.problem.summary, self.problem.units, assignment)
            self.points[key] = Point(assignment, measured.psnr, self.float.psnr - measured.psnr, summary)
            self.checked.update()
        return self.points[key]

    def choice(self, point: Point) -> np.ndarray:
        return np.array([self.problem.widths.index(point.assignment[name]) for name in self.names])

    def _measure_alone(self) -> None:
        for unit, width, measured in measurements_alone(self.problem):
            self.added[unit, width] = np.array(measured.error) - np.array(self.float.error)

    def _decibels(self, added: np.ndarray) -> np.ndarray:
        """Return the loss that added squared errors (.., images) mean, to first order, in dB.

        Against the truth they add up to first order, with what noise and error of the float network have in common.
        """
        return (DECIBELS * added / np.array(self.float.error)).mean(-1)

    def _costs(self) -> np.ndarray:
        """Return the cost of each unit at each width, beyond the part of the network that has no choice."""
        most = dict.fromkeys(self.names, self.problem.widths[0])
        base = self._cost(most)
        costs = np.zeros((len(self.names), len(self.problem.widths)))
        for unit, name in enumerate(self.names):
            for width, bits in enumerate(self.problem.widths):
                costs[unit, width] = self._cost({**most, name: bits}) - base
        costs -= costs.min(1, keepdims=True)
        self.fixed_cost = base - costs[:, 0].sum()
        return costs

    def _cost(self, assignment: Assignment) -> float:
        return self.budget.cost(with_bits(self.problem.summary, self.problem.units, assignment))

    def _check_possible(self, uniform: Mapping[int, Point]) -> None:
        kind, limit = self.budget.kind, self.budget.limit
        if kind == "loss":
            best = min(uniform.values(), key=lambda point: point.loss)
            if best.loss > limit:
                bits = next(bits for bits, point in uniform.items() if point is best)
                raise OptionError(
                    f"--max-loss {limit:g}: {bits} bits everywhere lose {best.loss:.3f} dB already, before training; "
                    f"give at least that, or more --bits"
                )
        elif self.fixed_cost > limit:
            raise OptionError(
                f"--max-{kind} {limit:g}: {self.problem.widths[-1]} bits everywhere take {self.fixed_cost:.3f} "
                f"{UNITS[kind]}; give at least that, or quantize more layers"
            )

    def _within_loss(self) -> Point:
        """Return the cheapest point found whose measured loss keeps the limit."""
        limit, losses = self.budget.limit, self._decibels(self.added)
        low, high, allowed = 0.0, float("inf"), limit
        best: Point | None = None
        for _ in range(self.checks):
            choice = choose(self.costs, losses, allowed)
            point = None if choice is None else self.point(choice)
            if point is not None and point.loss <= limit:
                best, low = self._cheaper(best, point), allowed
                if all(bits == self.problem.widths[-1] for bits in point.assignment.values()):
                    break
            else:
                high = allowed
            if low and high / low < CLOSE:
                break
            allowed = 2 * low if high == float("inf") else high / 2 if not low else (low * high) ** 0.5
        for point in self.points.values():  # uniform ones, too
            best = self._cheaper(best, point) if point.loss <= limit else best
        assert best is not None  # _check_possible found one
        return self._mended(best, self._lowered)

    def _cheaper(self, first: Point | None, second: Point) -> Point:
        if first is None or self.budget.cost(second.summary) < self.budget.cost(first.summary):
            return second
        return first

    def _within_cost(self, uniform: Sequence[Point]) -> Point:
        """Return the point with the least measured loss whose cost keeps the limit."""
        choice = choose(self._decibels(self.added), self.costs, self.budget.limit - self.fixed_cost)
        assert choice is not None  # _check_possible
        points = [self.point(choice), *(point for point in uniform if self._keeps_cost(point))]
        return self._mended(min(points, key=lambda point: point.loss), self._swapped)

    def _keeps_cost(self, point: Point) -> bool:
        return self.budget.cost(point.summary) <= self.budget.limit

    def _mended(self, best: Point, neighbours: Callable[[Point], Iterator[np.ndarray]]) -> Point:
        """Return the last point of a walk over neighbours that measurement approves, the most promising first."""
        left = self.checks
        improved = True
        while improved and left > 0:
            improved = False
            for choice in neighbours(best):
                if tuple(choice) in self.points:
                    continue
                left -= 1
                point = self.point(choice)
                better = (
                    point.loss <= self.budget.limit if self.budget.kind == "loss" else point.loss < best.loss - 1e-6
                )
                if better:
                    best, improved = point, True
                if better or left <= 0:
                    break
        return best

    def _lowered(self, point: Point) -> Iterator[np.ndarray]:
        """Yield choices with one unit a width lower, by the saving for each dB that it should lose."""
        choice, losses = self.choice(point), self._decibels(self.added)
        ranked = []
        for unit, width in enumerate(choice):
            if width + 1 < len(self.problem.widths):
                saving = self.costs[unit, width] - self.costs[unit, width + 1]
                loss = max(losses[unit, width + 1] - losses[unit, width], 1e-9)
                ranked.append((-saving / loss, unit))
        for _, unit in sorted(ranked):
            yield _changed(choice, (unit, 1))

    def _swapped(self, point: Point) -> Iterator[np.ndarray]:
        """Yield choices within the cost with one unit a width higher and another lower, by what they should gain."""
        choice, losses = self.choice(point), self._decibels(self.added)
        room = self.budget.limit - self.budget.cost(point.summary)
        ranked = []
        for up, width in enumerate(choice):
            for down, other in enumerate(choice):
                if width == 0 or up == down or other + 1 >= len(self.problem.widths):
                    continue
                cost = self.costs[up, width - 1] - self.costs[up, width]
                cost -= self.costs[down, other] - self.costs[down, other + 1]
                gain = losses[up, width] - losses[up, width - 1] - losses[down, other + 1] + losses[down, other]
                if cost <= room:
                    ranked.append((-gain, up, down))
        for _, up, down in sorted(ranked):
            yield _changed(choice, (up, -1), (down, 1))


def measurements_alone(problem: Problem) -> Iterator[tuple[int, int, Measurement]]:
    """Yield (unit, width, measurement) of every unit quantized alone, measuring what is not known yet."""
    pairs = [(unit, width) for unit in range(len(problem.units)) for width in range(len(problem.widths))]
    for unit, width in track(pairs, "Quantizing one convolution at a time", "measurement"):
        alone = {problem.units[unit].name: problem.widths[width]}
        yield unit, width, problem.measurer.measure(problem.only(alone))


def _changed(choice: np.ndarray, *changes: tuple[int, int]) -> np.ndarray:
    changed = choice.copy()
    for unit, change in changes:
        changed[unit] += change
    return changed
