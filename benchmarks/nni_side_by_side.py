"""NNI 3.0's own quantizers beside PAMS and DDTB: same network, data, order, loss and number of steps.

    python benchmarks/nni_side_by_side.py --steps 100 --bits 8 4 2 --out benchmarks/results/nni_side_by_side

All contenders train at the same time, one step each in turn, so that a slow moment of the machine hits all of them; a
step is compared with the float step of the same run. Each quantizes input and weight of the body's convolutions and
trains through NNI's ``TorchEvaluator``. Writes OUT.md and OUT.csv.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import nni
import torch
from nni.compression.quantization import DoReFaQuantizer, LsqPlusQuantizer, LsqQuantizer, QATQuantizer
from nni.compression.utils import TorchEvaluator
from torch import nn

import srq_nni
from srq_nni.atomic import atomic_file

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
from nni_photos import Photos, float_edsr, pixel_loss
from provenance import provenance

EDGE = 10  # steps whose mean is the first and the last loss
LAYERS = {"op_names_re": [r"body\.\d+\.conv[12]$"], "target_names": ["_input_", "weight"]}


@dataclass
class Row:
    """What one contender did; ``note`` says what went wrong, if something did."""

    bits: int
    quantizer: str
    psnr: float = float("nan")
    first_loss: float = float("nan")
    last_loss: float = float("nan")
    weight_gradient: float = float("nan")
    scale_gradient: float = float("nan")
    ms: float = float("nan")
    ratio: float = float("nan")
    note: str = ""


class Turns:
    """Lets threads run one step each, in a fixed order, until they leave."""

    def __init__(self, names: list[str]) -> None:
        self._waiting, self._changed = list(names), threading.Condition()

    @contextmanager
    def mine(self, name: str) -> Iterator[None]:
        """Wait for the turn of ``name``; at the end of the block it is the next one's."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting[0] == name)
        try:
            yield
        finally:
            with self._changed:
                self._waiting.append(self._waiting.pop(0))
                self._changed.notify_all()

    def leave(self, name: str) -> None:
        """Take ``name`` out, as one that finished or failed."""
        with self._changed:
            self._waiting.remove(name)
            self._changed.notify_all()


def gradient_norms(model: nn.Module) -> tuple[float, float]:
    """Return the norms of the gradients of the quantized weights and of what a quantizer trains beside them."""
    weights, scales = [0.0], [0.0]
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and "_nni_wrapper" in name:
            norms = weights if name.endswith("_nni_wrapper.weight") else scales
            norms.append(float(parameter.grad.norm()))
    return statistics.fmean(weights[1:] or [0.0]), statistics.fmean(scales[1:] or [0.0])


def contender(name: str, bits: int, steps: int) -> Callable[[nn.Module, Any], Any] | None:
    """Return what makes the quantizer ``name``, or None for floating point."""
    nnis: dict[str, Any] = {
        "QAT": QATQuantizer,
        "LSQ": LsqQuantizer,
        "LSQ+": LsqPlusQuantizer,
        "DoReFa": DoReFaQuantizer,
    }
    if name in nnis:
        scheme = "symmetric" if name == "LSQ" else "affine"  # the only one that LSQ takes
        entry = {**LAYERS, "quant_dtype": f"int{bits}", "quant_scheme": scheme, "granularity": "default"}
        return lambda model, evaluator: nnis[name](model, [entry], evaluator)
    entry = {**LAYERS, "quant_dtype": f"int{bits}"}
    if name == "PAMS":
        start = [{**entry, "calibration": "mse"}]
        return lambda model, evaluator: srq_nni.PAMSQuantizer(model, start, evaluator, calibration_iters=steps // 10)
    if name == "DDTB":
        phases = {"calibration_iters": steps // 10, "static_iters": steps // 5}
        return lambda model, evaluator: srq_nni.DDTBQuantizer(model, [entry], evaluator, **phases)
    return None


NAMES = ("float", "QAT", "LSQ", "LSQ+", "DoReFa", "PAMS", "DDTB")


def run(row: Row, data: Photos, steps: int, turns: Turns) -> None:
    """Train one contender in its turns and fill its row."""
    model, times, losses, norms = float_edsr(), [], [], []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # NNI's DoReFa hangs backward hooks on tensors, which must not change in place

    def train(model: nn.Module, optimizer: Any, step: Any, *_: Any) -> None:
        model.train()
        for _, batch in zip(range(steps), data.batches(), strict=False):
            with turns.mine(row.quantizer):
                start = time.perf_counter()
                optimizer.zero_grad()
                loss = step(batch, model)
                loss.backward()
                norms.append(gradient_norms(model) if len(norms) % EDGE == EDGE - 1 else None)
                optimizer.step()
                times.append(time.perf_counter() - start)
                losses.append(loss.item())

    try:
        optimizer = nni.trace(torch.optim.Adam)(model.parameters(), lr=1e-4)
        make = contender(row.quantizer, row.bits, steps)
        if make is None:
            train(model, optimizer, pixel_loss)
        else:
            with turns.mine(row.quantizer):
                quantizer = make(model, TorchEvaluator(train, optimizer, pixel_loss))
            quantizer.compress(steps, None)
        with turns.mine(row.quantizer):
            row.psnr = data.psnr(model)
    except Exception as error:  # one that fails is a row, too
        row.note = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    finally:
        turns.leave(row.quantizer)
    measured = [pair for pair in norms if pair is not None]
    if losses:
        row.first_loss, row.last_loss = statistics.fmean(losses[:EDGE]), statistics.fmean(losses[-EDGE:])
        row.ms = 1e3 * statistics.median(times)
    if measured:
        row.weight_gradient = statistics.fmean(weight for weight, _ in measured)
        row.scale_gradient = statistics.fmean(scale for _, scale in measured)


def compare(bits: int, steps: int, data: Photos) -> list[Row]:
    """Train all contenders at one bit width."""
    torch.manual_seed(1)
    turns, rows = Turns(list(NAMES)), [Row(bits, name) for name in NAMES]
    threads = [threading.Thread(target=run, args=(row, data, steps, turns)) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for row in rows:
        row.ratio = row.ms / rows[0].ms
    return rows


def table(rows: list[Row]) -> str:
    """Return the Markdown table."""
    lines = [
        "| bits | quantizer | PSNR dB | first loss | last loss | weight gradient | scale gradient | ms | ratio | |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        numbers = f"{row.psnr:.2f} | {row.first_loss:.4f} | {row.last_loss:.4f}"
        gradients = "– | –" if row.quantizer == "float" else f"{row.weight_gradient:.1e} | {row.scale_gradient:.1e}"
        lines.append(
            f"| {row.bits} | {row.quantizer} | {numbers} | {gradients} | {row.ms:.0f} | {row.ratio:.2f} | {row.note} |"
        )
    return "\n".join(lines)


def write(out: Path, rows: list[Row], steps: int, where: str) -> str:
    """Write OUT.md and OUT.csv; return the Markdown text."""
    columns = io.StringIO()
    writer = csv.DictWriter(columns, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    text = (
        "# NNI's quantizers beside PAMS and DDTB\n\n"
        f"EDSR 32x5 x2 of this repository, {steps} steps of Adam at 1e-4, LR patch 48, batch 8, L1 loss, tiles of the "
        "example photos; input and weight of the 10 convolutions of the body; PSNR on Y of 4 held-out photos. PAMS "
        "starts with calibration `mse`, DDTB observes for a tenth of the steps and holds its gates for a fifth. Losses "
        "are means of 10 steps; gradients are mean norms of what the quantizer trains: the quantized weights, and the "
        "scales, zero points, bounds and gates beside them. Step times are medians of steps in turn; the ratio is to "
        f"the float step. {where}.\n\n{table(rows)}\n"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    for suffix, content in ((".csv", columns.getvalue()), (".md", text)):
        with atomic_file(out.with_suffix(suffix)) as file:
            file.write(content.encode())
    return text


def main(argv: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4, 2])
    parser.add_argument("--out", type=Path, default=Path("nni_side_by_side"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    where, data, rows = provenance(), Photos(), list[Row]()
    for bits in args.bits:
        rows += compare(bits, args.steps, data)
        print(write(args.out, rows, args.steps, where))
    return rows


if __name__ == "__main__":
    main()
