"""Time and memory of a training step of QuantSRModel, as ratios to BasicSR's plain SRModel.

    python benchmarks/training_step.py --out benchmarks/results/training_step.md

Every variant is a model of BasicSR in the loop of ``basicsr.train``: learning rate, data, step, and the log at
``print_freq``. EDSR with 64 features and 16 blocks, x4, LR patch 48, L1 loss, Adam, average of weights as in BasicSR's
own EDSR file, 4 bits, wiring ``paper``. Steps of all variants alternate in one process (A B C A B C ...); the table
shows medians, and the ratio is the median of the ratios to the SRModel step of the same round. Memory is what the peak
resident set of a fresh process grows by from before the model is built, over three steps.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from provenance import provenance

from srq_nni.archs.quantized_arch import build_float

NETWORK = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 64, "num_block": 16, "upscale": 4}
PRINT_FREQ = 100  # of BasicSR's own option files
PAMS = {"quantizer": "pams", "bits": 4, "calibration_iters": 1}
DDTB = {"quantizer": "ddtb", "bits": 4, "calibration_iters": 1, "static_iters": 0}
SKT = {"skt_opt": {"type": "SKTLoss", "loss_weight": 3.92}}
CHANNELS, BFLOAT = {"channels_last": True}, {"amp": "bfloat16"}
BASE = "SRModel"
VARIANTS: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {  # name -> quantization, additions to train
    BASE: (None, {}),
    "PAMS": (PAMS, {}),
    "DDTB, gates applied": (DDTB, {}),
    "PAMS + SKT (teacher)": (PAMS, SKT),
    "DDTB + SKT (teacher)": (DDTB, SKT),
    "PAMS, channels_last": (PAMS, CHANNELS),
    "PAMS + SKT, channels_last": (PAMS, {**SKT, **CHANNELS}),
}
SLOW_WITHOUT_BFLOAT16 = {
    "PAMS, amp bfloat16": (PAMS, BFLOAT),
    "PAMS + SKT, amp bfloat16, channels_last": (PAMS, {**SKT, **BFLOAT, **CHANNELS}),
}
ALL = {**VARIANTS, **SLOW_WITHOUT_BFLOAT16}


def build(name: str, folder: Path, *, curves: bool = False) -> Any:
    """Return a variant's model, as BasicSR's pipeline would build it."""
    from basicsr.models import build_model

    logging.getLogger("basicsr").setLevel(logging.ERROR)
    quantization, train = ALL[name]
    weights = folder / "float.pth"
    if not weights.exists():
        torch.manual_seed(0)
        torch.save({"params": build_float(NETWORK).state_dict()}, weights)
    opt: dict[str, Any] = {
        "name": "step",
        "model_type": "SRModel" if quantization is None else "QuantSRModel",
        "scale": 4,
        **{"num_gpu": 0, "is_train": True, "dist": False, "rank": 0, "world_size": 1, "manual_seed": 0},
        "network_g": dict(NETWORK),
        "path": {"pretrain_network_g": str(weights), "strict_load_g": True},
        "train": {
            "ema_decay": 0.999,
            "optim_g": {"type": "Adam", "lr": 1e-4, "weight_decay": 0, "betas": [0.9, 0.99]},
            "scheduler": {"type": "MultiStepLR", "milestones": [200000], "gamma": 0.5},
            "total_iter": 300000,
            "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
            **train,
        },
        "root_path": str(folder),
        "logger": {"print_freq": PRINT_FREQ, "save_checkpoint_freq": 5000, "use_tb_logger": curves},
    }
    if quantization is not None:
        opt["quantization"] = quantization
        opt["path"]["pretrain_network_t"] = str(weights)
    return build_model(opt)


class Loop:
    """One iteration of BasicSR's training loop at each call."""

    def __init__(self, model: Any, patch: int, batch: int) -> None:
        torch.manual_seed(0)
        self.model, self.iteration = model, 0
        self.data = {
            "lq": torch.rand(batch, 3, patch, patch),
            "gt": torch.rand(batch, 3, 4 * patch, 4 * patch),
        }

    def __call__(self) -> None:
        self.iteration += 1
        self.model.update_learning_rate(self.iteration, warmup_iter=-1)
        self.model.feed_data(self.data)
        self.model.optimize_parameters(self.iteration)
        if self.iteration % PRINT_FREQ == 0:
            self.model.get_current_log()


def seconds(step: Callable[[], None]) -> tuple[float, float]:
    """Return (wall, CPU) seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure_time(names: list[str], args: argparse.Namespace, folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Return (wall, CPU) seconds of the steps of each variant, by rounds."""
    loops = {name: Loop(build(name, folder), args.patch, args.batch) for name in names}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for repetition in range(args.repetitions + 3):
        for name, loop in loops.items():
            taken = seconds(loop)
            if repetition > 2:  # calibration, first step of the optimizer and warming up
                samples[name].append(taken)
    return samples


def measure_curves(args: argparse.Namespace, folder: Path) -> tuple[float, float]:
    """Return CPU seconds of a step without, and of one that is printed, with TensorBoard curves of all quantizers."""
    loop = Loop(build("DDTB, gates applied", folder, curves=True), args.patch, args.batch)
    for _ in range(3):
        loop()
    plain, printed = [], []
    for _ in range(args.repetitions):
        loop.iteration = 3
        plain.append(seconds(loop)[1])
        loop.iteration = PRINT_FREQ - 1
        printed.append(seconds(loop)[1])
    return statistics.median(plain), statistics.median(printed)


def measure_memory(name: str, args: argparse.Namespace) -> float:
    """Return, in MB, what a fresh process grows by from before the model is built to the peak of three steps."""
    sizes = ["--patch", str(args.patch), "--batch", str(args.batch), "--threads", str(args.threads)]
    command = [sys.executable, __file__, "--memory-of", name, *sizes]
    return float(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def resident(field: str) -> float:
    """Return a field of /proc/self/status in MB; ``getrusage`` would report the parent's peak if that is larger."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "this benchmark reads /proc and needs Linux"
    return int(found[1]) / 1024


def grown(name: str, args: argparse.Namespace, folder: Path) -> float:
    """Return by how many MB this process grows to its peak."""
    from basicsr.models import build_model  # noqa: F401 - its imports are no part of the model

    before = resident("VmRSS")
    loop = Loop(build(name, folder), args.patch, args.batch)
    for _ in range(3):
        loop()
    return resident("VmHWM") - before


def table(times: dict[str, list[tuple[float, float]]], memory: dict[str, float]) -> str:
    """Return the Markdown table."""
    lines = ["| step | wall ms | CPU ms | time / SRModel | memory MB | memory / SRModel |", "|---" * 6 + "|"]
    for name, samples in times.items():
        wall, cpu = (statistics.median(sample[i] for sample in samples) for i in (0, 1))
        ratio = statistics.median(own[1] / base[1] for own, base in zip(samples, times[BASE], strict=True))
        lines.append(
            f"| {name} | {wall * 1e3:.0f} | {cpu * 1e3:.0f} | {ratio:.2f} | {memory[name]:.0f} "
            f"| {memory[name] / memory[BASE]:.2f} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--patch", type=int, default=48, help="LR pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", nargs="+", choices=list(ALL), default=list(ALL), metavar="NAME")
    parser.add_argument("--memory-of", choices=list(ALL), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if args.memory_of:
            print(json.dumps(grown(args.memory_of, args, folder)))
            return
        names = list(dict.fromkeys([BASE, *args.variants]))
        times = measure_time(names, args, folder)
        plain, printed = measure_curves(args, folder)
    memory = {name: measure_memory(name, args) for name in names}
    share = (printed - plain) / PRINT_FREQ / plain
    text = (
        "# Cost of a training step in BasicSR's loop\n\n"
        f"EDSR 64x16 x4, LR patch {args.patch}, batch {args.batch}, ema_decay 0.999, 4 bits, wiring paper; medians of "
        f"{args.repetitions} alternating steps, ratios of CPU time. {provenance()}.\n\n{table(times, memory)}\n\n"
        f"TensorBoard curves of all quantizers (DDTB): a printed step takes {printed * 1e3:.0f} ms of CPU time instead "
        f"of {plain * 1e3:.0f} ms; at print_freq {PRINT_FREQ} that is {share:+.2%} of the training time.\n"
    )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
