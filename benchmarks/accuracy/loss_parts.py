"""Where the loss of finished quantized networks comes from: activations, weights, or what training moved.

    python benchmarks/accuracy/loss_parts.py --only 'paper.*8bit' --work accuracy_runs     # results/loss_parts.md

Each network is measured again with its quantizers of activations off, of weights off, and without both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from cells import NETWORKS, Cell  # noqa: E402
from measure import evaluating, network, score  # noqa: E402
from measuring import benchmark_sets, finished, validation_images  # noqa: E402
from results import CSV, read_rows  # noqa: E402
from run import check_data, described_parser, select  # noqa: E402

from srq_nni.atomic import atomic_file, file_to_write  # noqa: E402
from srq_nni.errors import WriteError  # noqa: E402
from srq_nni.quantization.activation import ActivationQuantizer  # noqa: E402
from srq_nni.quantization.layers import set_mode  # noqa: E402
from srq_nni.quantization.methods import METHODS  # noqa: E402
from srq_nni.speedup.machine import this_machine  # noqa: E402

PAGE = CSV.with_name("loss_parts.md")
HEADER = ("network", "set", "float", "quantized", "lost", "by activations", "by weights", "by what moved")


@dataclass(frozen=True)
class Parts:
    """Y-PSNR in dB of one network on one set.

    Attributes:
        start: of the float network that it was made from.
        quantized: as it is.
        weights: with weights on their grids, and activations in floating point.
        neither: of its parameters in floating point.
    """

    start: float
    quantized: float
    weights: float
    neither: float

    def columns(self) -> list[str]:
        """Return start, quantized, loss, and the three parts of the loss, which add up to it."""
        lost = (
            self.start - self.quantized,
            self.weights - self.quantized,
            self.neither - self.weights,
            self.start - self.neither,
        )
        return [f"{self.start:.4f}", f"{self.quantized:.4f}", *(f"{part:+.4f}" for part in lost)]


def states(model: torch.nn.Module) -> Iterator[str]:
    """Put the quantizers of ``model`` into the states of ``Parts``, yielding the name of each."""
    set_mode(model, "quantize")
    yield "quantized"
    for module in model.modules():
        if isinstance(module, ActivationQuantizer):
            module.set_mode("float")
    yield "weights"
    set_mode(model, "float")
    yield "neither"


def parts_of(cell: Cell, data: Path, folder: Path) -> dict[str, Parts]:
    """Return what each set says of a finished cell."""
    scale = NETWORKS[cell.network].scale
    sets = {**benchmark_sets(data, scale), "val": validation_images(data, scale)}
    start, _ = finished(Cell("float", 32, network=cell.network), data, folder)
    model, _ = finished(cell, data, folder)
    psnr: dict[str, dict[str, float]] = {}
    with evaluating(start), evaluating(model):
        psnr["start"] = {name: score(network(start), pairs, scale).psnr for name, pairs in sets.items()}
        for state in states(model):
            psnr[state] = {name: score(network(model), pairs, scale).psnr for name, pairs in sets.items()}
    return {name: Parts(**{state: values[name] for state, values in psnr.items()}) for name in sets}


def document(found: dict[str, dict[str, Parts]]) -> str:
    """Return the page."""
    rows = [[cell, name, *parts.columns()] for cell, sets in found.items() for name, parts in sets.items()]
    machine = this_machine()
    return (
        "\n\n".join(
            [
                "# Where the loss comes from",
                "Y-PSNR in dB. Lost: float less quantized, and its parts: what turning the quantizers of activations "
                "off gives back, what those of weights give back after that, and what is left, which training moved. "
                "A part below zero is a gain.",
                "\n".join(["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"])
                + "".join("\n| " + " | ".join(row) + " |" for row in rows),
                f"Measured by `benchmarks/accuracy/loss_parts.py`: {machine.date}, commit {machine.commit or 'unknown'}"
                f", {machine.processor} ({machine.instruction_set}), one core. Budgets of the networks: `accuracy.md`.",
            ]
        )
        + "\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = described_parser(__doc__)
    parser.add_argument("--only", metavar="PATTERN", default="8bit", help="cells whose names contain this expression")
    parser.add_argument("--output", type=Path, default=PAGE, help="the page")
    args = parser.parse_args(argv)
    check_data(parser, args.data)
    try:
        file_to_write(args.output)
    except WriteError as error:
        parser.error(f"--output: {error}")
    torch.set_num_threads(1)
    done = read_rows(args.table)
    kept = {cell.name for cell in select(args.only) if cell.method in METHODS and (args.work / cell.name).is_dir()}
    cells = [cell for cell in select(args.only) if cell.name in done and (cell.method == "ptq" or cell.name in kept)]
    if not cells:
        parser.error(
            f"--only: '{args.only}' matches no quantized network of ours that is finished in '{args.table}' and whose "
            f"run is in '{args.work}'; run.py --list shows all names"
        )
    found = {}
    for cell in cells:
        found[cell.name] = parts_of(cell, args.data, args.work / cell.name)
        print(
            cell.name, *(f"{name} {' '.join(parts.columns())}" for name, parts in found[cell.name].items()), flush=True
        )
    with atomic_file(args.output) as file:
        file.write(document(found).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
