"""Make the tables and plots of the accuracy benchmark from its CSV.

    python benchmarks/accuracy/tables.py                             # benchmarks/results/accuracy.md, accuracy.png
    python benchmarks/accuracy/tables.py --merge other/accuracy.csv  # add the rows of another machine's table first

``--curves`` draws the runs of accuracy_runs/ as they train, finished or not, into accuracy_curves.png.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import matplotlib  # noqa: E402

matplotlib.use("Agg")
from cells import NETWORKS, PROTOCOL, Cell, Network  # noqa: E402
from contenders import queue  # noqa: E402
from matplotlib import pyplot  # noqa: E402
from recipes import RECIPES  # noqa: E402
from results import CSV, Row, add_row, read_rows  # noqa: E402

from srq_nni.atomic import atomic_file  # noqa: E402

HEADER = (
    "contender",
    "wiring",
    "recipe",
    "bits",
    "seed",
    "Set5",
    "Set14",
    "lost",
    "coverage",
    "M params",
    "body kB",
    "TBOPs",
    "min",
)
PUBLISHED_ON = "EDSR"  # dB on Set5 that DDTB published as lost on EDSR-baseline x2 after 60,000 iterations:
MARK = {4: 0.3, 3: 0.5, 2: 0.75}
WIDTHS = (2, 3, 4, 8)  # bits in the plot
MARKERS = {"ddtb": "o", "pams": "s", "qat": "^", "lsq": "v", "ptq": "x"}
STYLES = {"paper": "-", "deploy": "--", "official": "-."}
BELOW_BICUBIC = 0.5  # dB


def table(rows: Sequence[Row]) -> str:
    """Return the Markdown table of one network, in the order of the queue."""
    float_row = next((row for row in rows if row.method == "float"), None)
    lines = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
    lines += ["| " + " | ".join(_columns(row, float_row)) + " |" for row in rows]
    return "\n".join(lines)


def _columns(row: Row, float_row: Row | None) -> list[str]:
    lost = "" if float_row is None else f"{float_row.set5_psnr - row.set5_psnr:+.3f}"
    return [
        row.method,
        row.wiring or "–",
        row.recipe or "–",
        str(row.bits) if row.bits < 32 else "–",
        str(row.seed) if row.minutes else "–",
        f"{row.set5_psnr:.3f} / {row.set5_ssim:.4f}",
        f"{row.set14_psnr:.3f} / {row.set14_ssim:.4f}",
        lost if row.method != "float" else "0",
        f"{100 * row.coverage:.1f} %",
        _number(row.size, 3),
        _number(row.body_kb, 1),
        _number(row.bops, 2),
        f"{row.minutes:.0f}",
    ]


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def halves(rows: Iterable[Row]) -> list[str]:
    """Return, for each bit width, what the recommended recipe of DDTB loses beside the official one, as sentences.

    Where it ran with several learning rates the one counts that is best on val.
    """
    found: dict[tuple[str, int], Row] = {}
    for row in rows:
        if row.method == "ddtb" and row.seed == 1:
            key = (row.recipe.split(",")[0], row.bits)
            found[key] = max(found.get(key, row), row, key=lambda row: row.val_psnr)
    float_row = next((row for row in rows if row.method == "float"), None)
    marked = float_row is not None and NETWORKS[float_row.network].block["type"] == PUBLISHED_ON
    sentences = []
    for bits in (8, 4, 3, 2):
        official, recommended = found.get(("official", bits)), found.get(("recommended", bits))
        if float_row is None or official is None or recommended is None:
            continue
        losses = [float_row.set5_psnr - row.set5_psnr for row in (official, recommended)]
        share = f", {losses[1] / losses[0]:.0%} of it" if losses[0] > 0 and losses[1] > 0 else ""
        mark = f"; published on EDSR-baseline x2: {MARK[bits]}" if marked and bits in MARK else ""
        sentences.append(
            f"- {bits} bits: official loses {losses[0]:.3f} dB on Set5, {recommended.recipe} {losses[1]:.3f}{share}"
            f"{mark}."
        )
    return sentences


def ablation(rows: Iterable[Row]) -> list[str]:
    """Return the section on runs of other lengths: what one change is worth on the validation set."""
    own = in_order(rows)
    if not own:
        return []
    parts = [
        "## One change at a time, in runs of other lengths",
        "Phases, warm-up and decay are shortened or stretched alike. Choices are made on val (Kodak and McMaster).",
    ]
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in own:
        groups.setdefault((row.network, row.method, row.bits, spent(row)), []).append(row)
    for (network, method, bits, iterations), group in groups.items():
        whole = next((row for row in group if row.recipe == "recommended"), None)
        what = f"{network}, {str(method).upper()}, {bits} bits, {iterations} iterations"
        lines = [
            f"| {what} | wiring | val | difference | Set5 |",
            "|---|---|---|---|---|",
        ]
        for row in sorted(group, key=lambda row: -row.val_psnr):
            difference = "" if whole in (None, row) else f"{row.val_psnr - whole.val_psnr:+.3f}"
            lines.append(f"| {row.recipe} | {row.wiring} | {row.val_psnr:.3f} | {difference} | {row.set5_psnr:.3f} |")
        parts.append("\n".join(lines))
    return parts


def spread(rows: Iterable[Row]) -> list[str]:
    """Return the section on contenders that ran with several seeds: mean and range of what they score."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in in_order(rows):
        groups.setdefault((row.network, row.method, row.wiring, row.recipe, row.bits), []).append(row)
    several = [group for group in groups.values() if len({row.seed for row in group}) > 1]
    if not several:
        return []
    lines = ["| network | contender | wiring | recipe | bits | seeds | Set5 | Set14 | val |", "|---" * 9 + "|"]
    for group in several:
        first = group[0]
        seeds = ", ".join(str(seed) for seed in sorted(row.seed for row in group))
        columns = zip(*((row.set5_psnr, row.set14_psnr, row.val_psnr) for row in group), strict=True)
        scores = [f"{sum(column) / len(column):.3f} ({min(column):.3f} to {max(column):.3f})" for column in columns]
        what = [first.network, first.method, first.wiring, first.recipe, str(first.bits), seeds]
        lines.append("| " + " | ".join([*what, *scores]) + " |")
    return ["## Several seeds", "Mean (smallest to largest) Y-PSNR in dB.", "\n".join(lines)]


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Return rows in the order of the queue; cells that the queue no longer has come last."""
    places = {cell.name: place for place, cell in enumerate(queue())}
    return sorted(rows, key=lambda row: places.get(row.cell, len(places)))


def spent(row: Row) -> int:
    """Return the iterations of a run, those included that chose the bases of its float network."""
    recipe = RECIPES.get(row.recipe)
    return row.iterations + (recipe.equalized if recipe and row.iterations else 0)


def is_whole(row: Row) -> bool:
    """Whether a row is of a run at its network's full budget, or needed none."""
    return spent(row) in (0, NETWORKS[row.network].iterations)


def budget(network: Network) -> str:
    """Return the budget of a network's runs in words, and the crop, where they are not those of protocol P."""
    crop = "" if network.scale == PROTOCOL.crop else f", crop {network.scale}"
    if (network.iterations, network.batch) == (PROTOCOL.iterations, PROTOCOL.batch):
        return crop
    return f", {network.iterations} iterations of {network.batch} patches{crop}"


def document(rows: Sequence[Row]) -> str:
    """Return the Markdown page."""
    whole = [row for row in rows if is_whole(row)]
    origins = sorted({f"{row.date}, commit {row.commit}, {row.machine}" for row in rows})
    waiting = [cell.name for cell in queue() if cell.name not in {row.cell for row in rows}]
    recipes = [f"- `{name}`: {recipe.note}" for name, recipe in RECIPES.items() if recipe.note]
    parts = [
        "# Accuracy under protocol P",
        f"{PROTOCOL.iterations} iterations of {PROTOCOL.batch} LR patches of {PROTOCOL.patch}x{PROTOCOL.patch}, x2, "
        f"Adam, L1 + SKT, from pretrained float weights; Y-PSNR / SSIM, crop {PROTOCOL.crop}, last iteration, nothing "
        "chosen here. `lost` is dB on Set5 to the float network, coverage the share of MACs with two quantized "
        "operands, M params in 32-bit equivalents, TBOPs for 1280x720, min of CPU time of training. Recipes:",
        "\n".join(recipes),
    ]
    for network in dict.fromkeys(row.network for row in in_order(whole)):
        own = in_order(row for row in whole if row.network == network)
        parts += [f"## {network} x{NETWORKS[network].scale}{budget(NETWORKS[network])}", table(own)]
        if sentences := halves(own):
            parts.append("\n".join(sentences))
    parts += spread(whole)
    parts += ablation(row for row in rows if row not in whole)
    parts.append("Measured: " + "; ".join(origins) + ".")
    if waiting:
        parts.append(
            f"Not run yet: {len(waiting)} of {len(queue())} cells. `python benchmarks/accuracy/run.py` runs them, the "
            f"most telling first: {', '.join(f'`{name}`' for name in waiting[:8])}{', ..' * (len(waiting) > 8)}"
        )
    return "\n\n".join(parts) + "\n"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw Set5 PSNR over bits, a line for each contender of seed 1 of the first network.

    A recipe has its colour, a method its marker, and a wiring its style. Where a contender has several learning rates
    at a bit width, the best on the validation set counts. One that ran at a single width is left to the table, where
    others are lines. The picture ends a little below bicubic enlargement, which some networks without training are far
    below.
    """
    own = [row for row in rows if row.network == rows[0].network and is_whole(row)]
    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    lines: dict[tuple[str, ...], dict[int, Row]] = {}
    for row in in_order(own):
        if row.bits < 32 and row.seed == 1:
            line = lines.setdefault((row.method, row.wiring, row.recipe.partition(", lr ")[0]), {})
            line[row.bits] = max(line.get(row.bits, row), row, key=lambda row: row.val_psnr)
    lines = {contender: line for contender, line in lines.items() if len(line) > 1} or lines
    axes.plot([str(bits) for bits in WIDTHS], [math.nan] * len(WIDTHS))  # equal distances, in this order
    recipes = list(dict.fromkeys(recipe for _, _, recipe in lines))
    for place, ((method, wiring, recipe), line) in enumerate(lines.items()):
        points = [(str(bits), line[bits].set5_psnr) for bits in WIDTHS if bits in line]
        axes.plot(
            *zip(*points, strict=True),
            color=pyplot.colormaps["tab20"](recipes.index(recipe)),
            marker=MARKERS[method],
            linestyle=STYLES[wiring],
            zorder=3 - place / 100,  # what tells more lies on top
            label=f"{method} {wiring} {recipe}",
        )
    for row in own:
        if row.method == "bicubic":
            axes.set_ylim(bottom=row.set5_psnr - BELOW_BICUBIC)
        if row.bits == 32:
            style = ":" if row.method == "bicubic" else "--"
            axes.axhline(row.set5_psnr, color="grey", linestyle=style, label=row.method)
    axes.set(
        xlabel="bits of weights and activations",
        ylabel="Y-PSNR on Set5, dB",
        title=f"{own[0].network} x{NETWORKS[own[0].network].scale}, protocol P",
    )
    if names := axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
        figure.set_figheight(max(4.2, 0.23 * len(names)))  # as high as the legend
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def plot_curves(work: Path, path: Path) -> None:
    """Draw the validation PSNR of all runs in a work folder over their iterations."""
    named = {cell.name: cell for cell in queue()}
    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for log in sorted(work.glob("*/progress.json")):
        curve = json.loads(log.read_text())["curve"]
        if curve:
            axes.plot(
                [point[0] for point in curve], [point[1] for point in curve], marker=".", label=_label(named, log)
            )
    axes.set(xlabel="iteration", ylabel="Y-PSNR on crops of val/, dB", title="protocol P, while it trains")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def _label(named: dict[str, Cell], log: Path) -> str:
    cell = named.get(log.parent.name)
    return (
        log.parent.name
        if cell is None
        else f"{cell.method} {cell.wiring} {cell.recipe} {cell.bits} bits, seed {cell.seed}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=CSV, help="CSV of run.py")
    parser.add_argument("--merge", type=Path, nargs="*", default=[], help="CSV files whose rows are added to it first")
    parser.add_argument("--curves", type=Path, metavar="WORK", help="work folder whose runs are drawn")
    args = parser.parse_args(argv)
    for other in args.merge:
        if not other.is_file():
            parser.error(f"--merge: '{other}' is no file; give a CSV that run.py wrote")
        add_row(args.table, *read_rows(other).values())
    rows = list(read_rows(args.table).values())
    if not rows:
        parser.error(f"--table: '{args.table}' has no rows yet; run run.py first")
    with atomic_file(args.table.with_suffix(".md")) as file:
        file.write(document(rows).encode())
    plot(in_order(rows), args.table.with_suffix(".png"))
    if args.curves is not None:
        plot_curves(args.curves, args.table.with_name(f"{args.table.stem}_curves.png"))
    print(document(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
