"""Speed of INT8 beside bfloat16 and float32: EDSR 64x16 and RDN on OpenVINO and ONNX Runtime.

    python benchmarks/speed.py --out benchmarks/results/speed.md

LR 128x128 (RDN, which has 15 times the work, a quarter of the pixels), one thread, everything of one network in turns.
The weights are random and the bounds come from one photograph: speed does not depend on them. The ratios to reach are
defined for processors with AMX; the head of the result says what this one has. `--rounds` are the calls that count; on
a busy machine give more of them. The file is written again after each network.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from srq_nni.archs.quantized_arch import QuantizedNetwork
from srq_nni.quantization.layers import calibrate
from srq_nni.speedup.bench import BenchReport, Row, benchmark, photograph
from srq_nni.speedup.bench.variants import BFLOAT16, FLOAT32, INT8, INT8_BFLOAT16, INT8_BFLOAT16_TAIL

EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 64, "num_block": 16}
RDN = {"type": "RDN", "num_feat": 64, "num_block": 16, "num_layer": 8, "num_grow_ch": 64}
Ratio = Callable[[BenchReport, Row, str, str], float | None]


@dataclass(frozen=True)
class Case:
    """One network with its quantizers, and the engines that run it."""

    name: str
    network: dict[str, object]
    quantization: dict[str, object]
    engines: tuple[str, ...] = ("openvino",)

    @property
    def reduction(self) -> int:
        """How many times smaller a side of its image is."""
        return 2 if self.network["type"] == "RDN" else 1


@dataclass(frozen=True)
class Goal:
    """A ratio to reach on a processor with AMX: ``case`` in ``precision`` over ``base`` of the same engine."""

    case: str
    engine: str
    precision: str
    base: str
    reach: float
    stretch: float | None = None


def case(
    name: str,
    network: dict[str, object],
    bits: int | dict[str, int],
    wiring: str,
    *engines: str,
    **options: int | str,
) -> Case:
    """Return a case with PAMS."""
    return Case(
        name, network, {"quantizer": "pams", "bits": bits, "wiring": wiring, **options}, engines or ("openvino",)
    )


def beside_bfloat16(name: str, reach: float, stretch: float, over_bfloat16: float) -> tuple[Goal, ...]:
    """Return the goals of a case whose floats are bfloat16: as OpenVINO chooses them, and behind the body alone."""
    return tuple(
        goal
        for precision in (INT8_BFLOAT16, INT8_BFLOAT16_TAIL)
        for goal in (
            Goal(name, "openvino", precision, FLOAT32, reach, stretch),
            Goal(name, "openvino", precision, BFLOAT16, over_bfloat16),
        )
    )


X4, X2 = {**EDSR, "upscale": 4}, {**EDSR, "upscale": 2}
SEVEN = {"weight": 7, "activation": 8}  # exact without VNNI, too
CASES = {
    "x4 body": case("EDSR x4, 8-bit body", X4, 8, "paper"),
    "x4 body and tail": case("EDSR x4, 8-bit body and tail", X4, 8, "deploy", "openvino", "onnxruntime", tail=8),
    "x4 deploy": case("EDSR x4, 8-bit body, `deploy`", X4, 8, "deploy", "openvino", "onnxruntime"),
    "x4 deploy, channels": case(
        "EDSR x4, 8-bit body, `deploy`, weights per channel",
        X4,
        8,
        "deploy",
        "openvino",
        "onnxruntime",
        weight_range="learned_per_channel",
    ),
    "x4 deploy, 7-bit weights": case(
        "EDSR x4, 8-bit body with 7-bit weights, `deploy`", X4, SEVEN, "deploy", "openvino", "onnxruntime"
    ),
    "x4 4 bits": case("EDSR x4, 4-bit body", X4, 4, "paper"),
    "x2 body": case("EDSR x2, 8-bit body", X2, 8, "paper"),
    "x2 deploy": case("EDSR x2, 8-bit body, `deploy`", X2, 8, "deploy", "openvino", "onnxruntime"),
    "x2 deploy, 7-bit weights": case(
        "EDSR x2, 8-bit body with 7-bit weights, `deploy`", X2, SEVEN, "deploy", "openvino", "onnxruntime"
    ),
    "rdn": case("RDN x2 (16 blocks of 8), 8-bit body", {**RDN, "upscale": 2}, 8, "deploy", "openvino", "onnxruntime"),
}
GOALS = (
    *beside_bfloat16("x4 body", 6.0, 7.0, 1.15),
    *beside_bfloat16("x4 body and tail", 8.0, 9.5, 1.6),
    *beside_bfloat16("x2 body", 7.5, 9.0, 1.2),
    Goal("x4 body", "openvino", INT8, FLOAT32, 1.85, 2.1),
    Goal("x4 deploy", "onnxruntime", INT8, FLOAT32, 1.25, 1.5),
    Goal("x2 deploy", "onnxruntime", INT8, FLOAT32, 2.0, 2.5),
)


def measure(chosen: Case, args: argparse.Namespace) -> BenchReport:
    """Return the benchmark of one case."""
    torch.manual_seed(0)
    model = QuantizedNetwork(chosen.network, chosen.quantization)
    calibrate(model, [photograph(3, (96, 96))])
    return benchmark(
        model.eval(),
        engines=chosen.engines,
        size=(args.size // chosen.reduction,) * 2,
        repeats=args.rounds,
        threads=args.threads,
        name=chosen.name,
    )


def goals_table(reports: dict[str, BenchReport]) -> str:
    """Return the Markdown table of the ratios to reach."""
    lines = [
        "| network | engine | precision | over | wall | CPU | to reach with AMX | stretch | dB from the simulator |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for goal in GOALS:
        if goal.case not in reports:
            continue
        report = reports[goal.case]
        row = report.row(goal.engine, goal.precision)
        assert row is not None
        wall = report.speed(row, goal.engine, goal.base)
        cpu = report.cpu_speed(row, goal.engine, goal.base)
        ratios = " | ".join("–" if value is None else f"{value:.2f}" for value in (wall, cpu))
        stretch = "–" if goal.stretch is None else f"{goal.stretch:g}"
        names = f"{report.model} | {goal.engine} | {goal.precision} | {goal.base}"
        exactness = "–" if row.difference is None else f"{row.difference.psnr:.1f}"
        lines.append(f"| {names} | {ratios} | {goal.reach:g} | {stretch} | {exactness} |")
    return "\n".join(lines)


def text_of(reports: dict[str, BenchReport], args: argparse.Namespace) -> str:
    """Return the page: the ratios, then the table of each network."""
    first = next(iter(reports.values()))
    machine = first.machine
    warnings = []
    if machine.instruction_set != "amx_int8":
        warnings.append(
            f"**This processor has {machine.instruction_set}, not AMX**: the ratios to reach are defined for AMX "
            "and were not measured here; run this script on a processor that has it."
        )
    if not machine.bfloat16:
        warnings.append(
            "It has no bfloat16 either, so rows named bfloat16 ran float32, and ratios over them say nothing."
        )
    loads = [report.machine.load for report in reports.values() if report.machine.load is not None]
    busy = f" Load of the machine after each network: {', '.join(f'{load:.1f}' for load in loads)}." if loads else ""
    return "\n\n".join(
        [
            "# Speed of INT8 beside bfloat16 and float32",
            f"`benchmarks/speed.py --size {args.size} --rounds {args.rounds} --threads {args.threads}`. {machine}. "
            f"Median wall time and least CPU time of {args.rounds} calls in turns; random weights, bounds from one "
            f"photograph.{busy}",
            *([" ".join(warnings)] if warnings else []),
            goals_table(reports),
            *(f"```\n{report}\n```" for report in reports.values()),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    reports: dict[str, BenchReport] = {}
    for name in args.cases:
        reports[name] = measure(CASES[name], args)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(text_of(reports, args) + "\n")
    print(text_of(reports, args))


if __name__ == "__main__":
    main()
