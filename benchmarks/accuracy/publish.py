"""Pack the finished quantized networks whose float weights the repository ships, and write their model cards.

    python benchmarks/accuracy/publish.py --work accuracy_runs      # weights/NAME.safetensors, weights/NAME.md

Each network is loaded again from its packed file and must give the PSNR of its row of the table.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from cells import GREY, NETWORKS, PROTOCOL, REPOSITORY, Cell  # noqa: E402
from contenders import queue  # noqa: E402
from images import read_pairs  # noqa: E402
from measure import evaluating, network, score  # noqa: E402
from recipes import RECIPES  # noqa: E402
from results import Row, read_rows  # noqa: E402
from run import check_data, described_parser  # noqa: E402

from srq_nni import packed  # noqa: E402
from srq_nni.atomic import atomic_file  # noqa: E402

SAME = 1e-3  # dB; channels_last, in which cells train, adds in another order
LIMITS = (
    "The last iteration was taken; nothing was chosen on these sets. It knows clean, bicubically reduced photos only."
)


def name_of(cell: Cell) -> str:
    """Return the name of a shipped network, without an ending."""
    description = NETWORKS[cell.network]
    return f"{Path(description.weights).stem}_{cell.method}_{cell.bits}bit"


def card(cell: Cell, row: Row, report: packed.PackReport, float_row: Row) -> str:
    """Return the model card: what it is, data, budget, PSNR, coverage."""
    described, recipe = NETWORKS[cell.network], RECIPES[cell.recipe]
    block = described.block
    lines = [
        f"# {name_of(cell)}.safetensors",
        "| | |\n|---|---|",
        f"| network | BasicSR's `{block['type']}`: {block['num_feat']} features, {block['num_block']} blocks, "
        f"x{described.scale}, `img_range: {block['img_range']}`; started from `weights/{described.weights}`, which was "
        "its teacher, too |",
        f"| quantizer | {cell.method.upper()}, {cell.bits} bits, wiring `{cell.wiring}`; "
        f"{row.coverage:.1%} of all multiply-accumulates have two quantized operands; head and tail are float |",
        f"| file | {report.file_bytes / 1e6:.2f} MB; the body's weights are packed codes, {row.body_kb:.0f} kB |",
        "| use | `srq_nni.load(path)`, `srq export`, `srq upscale` |",
        "| licence | Apache-2.0, as the rest of the repository |",
        f"| trained by | `benchmarks/accuracy/run.py --cell {cell.name}`, protocol P (docs/accuracy.md) |",
        f"| recipe | {recipe.note} |",
        "| data | 800 crops of 128x128 from the DIV2K training images and 145 crops of 480x480 of free photos; LR by "
        "antialiased bicubic reduction |",
        f"| budget | {row.iterations} iterations of {described.batch} LR patches of {PROTOCOL.patch}x{PROTOCOL.patch}, "
        f"L1 + SKT ({PROTOCOL.skt_weight * GREY:.0f} / {GREY}), seed {row.seed}; {row.minutes:.0f} minutes of one core "
        f"({row.machine}) |",
        f"| measured | {row.date}, commit {row.commit} |",
    ]
    scores = [
        f"| Y-PSNR / SSIM, crop {described.scale} | Set5 | Set14 |\n|---|---|---|",
        *(
            f"| {label} | {own.set5_psnr:.3f} / {own.set5_ssim:.4f} | {own.set14_psnr:.3f} / {own.set14_ssim:.4f} |"
            for label, own in (("float", float_row), (f"**this network, {cell.bits} bits**", row))
        ),
    ]
    return "\n\n".join([lines[0], "\n".join(lines[1:]), "\n".join(scores), LIMITS]) + "\n"


def publish(cell: Cell, row: Row, float_row: Row, data: Path, work: Path, folder: Path) -> Path:
    """Pack one finished cell, check what was packed, and write its card; return the path of the packed file.

    Raises:
        SystemExit: if the packed network does not score what the table says.
    """
    path = folder / f"{name_of(cell)}.safetensors"
    report = packed.pack(work / cell.name / "models" / f"net_g_{row.iterations}.pth", path)
    scale, set5 = NETWORKS[cell.network].scale, data / "benchmark/Set5"
    pairs = read_pairs(set5 / "HR", set5 / f"LR_bicubic/X{scale}", scale)
    with evaluating(packed.load(path)) as model:
        psnr = score(network(model), pairs, scale).psnr
    if abs(psnr - row.set5_psnr) > SAME:
        path.unlink()
        raise SystemExit(f"{cell.name}: the packed network has {psnr:.5f} dB on Set5, the table {row.set5_psnr:.5f}")
    with atomic_file(path.with_suffix(".md")) as file:
        file.write(card(cell, row, report, float_row).encode())
    return path


def chosen(rows: Mapping[str, Row]) -> list[Cell]:
    """Return the finished cells to ship: of those with the same name the one that is best on val."""
    ready = [cell for cell in queue() if NETWORKS[cell.network].shipped and cell.bits < 32 and cell.name in rows]
    by_score = sorted(ready, key=lambda cell: rows[cell.name].val_psnr)
    return list({name_of(cell): cell for cell in by_score}.values())


def main(argv: Sequence[str] | None = None) -> int:
    parser = described_parser(__doc__)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "weights", help="folder of the packed networks")
    args = parser.parse_args(argv)
    check_data(parser, args.data)
    torch.set_num_threads(1)  # as the cells trained; with two threads the packed bytes are others
    rows = read_rows(args.table)
    ready = chosen(rows)
    if not ready:
        parser.error(f"--table: '{args.table}' has no quantized network of shipped float weights; run run.py first")
    for cell in ready:
        float_name = Cell("float", 32, network=cell.network).name
        if float_name not in rows:
            parser.error(f"--table: '{args.table}' lacks {float_name}; run run.py --only '{float_name}' first")
        print(publish(cell, rows[cell.name], rows[float_name], args.data, args.work, args.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
