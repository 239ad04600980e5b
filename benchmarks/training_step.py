"""Time and memory of a quantized training step, as a ratio to the same step without quantization.

    python benchmarks/training_step.py --out benchmarks/results/training_step.md

EDSR with 64 features and 16 blocks, x4, LR patch 48, batch 4, L1 loss, Adam, 4 bits, `paper` wiring. Steps of all
variants alternate in one process (A B C A B C ...); the table shows medians of wall and of CPU time. Peak memory is the
peak resident set of a fresh process that runs a few steps of one variant.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from provenance import provenance

from srq_nni.archs.quantized_arch import build_float, insert_quantizers
from srq_nni.compression.options import options_from
from srq_nni.quantization.layers import calibrate

NETWORK = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 64, "num_block": 16, "upscale": 4}
METHODS = ("float", "pams", "ddtb")
LAYOUTS = ("float32", "float32 channels_last", "bfloat16 channels_last")


def make_step(method: str, layout: str, patch: int, batch: int) -> Callable[[], None]:
    """Return a function that does one training step."""
    torch.manual_seed(0)
    model = build_float(NETWORK)
    if method != "float":
        insert_quantizers(model, options_from({"quantizer": method, "bits": 4}))
    low, high = torch.rand(batch, 3, patch, patch), torch.rand(batch, 3, patch * 4, patch * 4)
    if "channels_last" in layout:
        model = model.to(memory_format=torch.channels_last)
        low, high = (t.to(memory_format=torch.channels_last) for t in (low, high))
    calibrate(model, [low])
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in layout):
            loss = (model(low).float() - high).abs().mean()
        loss.backward()
        optimizer.step()

    return step


def measure_time(
    variants: list[tuple[str, str]], args: argparse.Namespace
) -> dict[tuple[str, str], tuple[float, float]]:
    """Return the median (wall, CPU) seconds of each variant's step."""
    steps = {variant: make_step(*variant, args.patch, args.batch) for variant in variants}
    samples: dict[tuple[str, str], list[tuple[float, float]]] = {variant: [] for variant in variants}
    for repetition in range(args.repetitions + 1):
        for variant, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            if repetition:  # the first round warms up
                samples[variant].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        variant: (statistics.median(s[0] for s in taken), statistics.median(s[1] for s in taken))
        for variant, taken in samples.items()
    }


def measure_memory(variant: tuple[str, str], args: argparse.Namespace) -> float:
    """Return the peak resident set, in MB, of a fresh process that runs one variant."""
    command = [
        sys.executable,
        __file__,
        "--memory-of",
        *variant,
        "--patch",
        str(args.patch),
        "--batch",
        str(args.batch),
    ]
    result = subprocess.run([*command, "--threads", str(args.threads)], capture_output=True, text=True, check=True)
    return float(json.loads(result.stdout))


def peak_resident() -> float:
    """Return the peak resident set of this process in MB; ``getrusage`` would report its parent's if that is larger."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "this benchmark reads /proc and needs Linux"
    return int(found[1]) / 1024


def table(times: dict[tuple[str, str], tuple[float, float]], memory: dict[tuple[str, str], float]) -> str:
    """Return the Markdown table; ratios are to the float step of the same layout."""
    lines = ["| layout | step | wall ms | CPU ms | wall ratio | CPU ratio | peak MB | memory ratio |", "|---" * 8 + "|"]
    for (method, layout), (wall, cpu) in times.items():
        base, resident = times["float", layout], memory["float", layout]
        peak = memory[method, layout]
        lines.append(
            f"| {layout} | {method} | {wall * 1e3:.0f} | {cpu * 1e3:.0f} | {wall / base[0]:.2f} | {cpu / base[1]:.2f} "
            f"| {peak:.0f} | {peak / resident:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--patch", type=int, default=48)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--memory-of", nargs=2, metavar=("METHOD", "LAYOUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        step = make_step(*args.memory_of, args.patch, args.batch)
        for _ in range(3):
            step()
        print(json.dumps(peak_resident()))
        return
    variants = [(method, layout) for layout in args.layouts for method in METHODS]
    times = {}
    for layout in args.layouts:  # three networks in memory at a time, not nine
        times.update(measure_time([variant for variant in variants if variant[1] == layout], args))
    memory = {variant: measure_memory(variant, args) for variant in variants}
    text = (
        "# Cost of a quantized training step\n\n"
        f"EDSR 64x16 x4, LR patch {args.patch}, batch {args.batch}, 4 bits, paper "
        f"wiring; medians of {args.repetitions} alternating steps. {provenance()}.\n\n{table(times, memory)}\n"
    )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
