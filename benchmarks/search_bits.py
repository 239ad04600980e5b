"""Search the bits of the small float EDSR on photographs, beside equal bits; writes results/search_bits.md.

The limit is what 4 or 6 bits everywhere take. Bits are chosen on the middle of each photograph and judged on two other
parts of it, at which the search has not looked.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from provenance import provenance

import srq_nni  # noqa: F401 - BasicSR can be imported only after it
from srq_nni.models.dataset_images import ImageSet, Pair
from srq_nni.search import Budget, search_bits
from srq_nni.search.run import Point, SearchResult
from srq_nni.search.setup import Problem, problem_from
from srq_nni.search.write import table
from srq_nni.speedup.table import text_table

ROOT = Path(__file__).resolve().parents[1]
HIGH = 192  # side of the crops, pixels
NETWORK = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 32, "num_block": 5, "upscale": 2}
NETWORK |= {"img_range": 255.0, "rgb_mean": [0.4488, 0.4371, 0.4040]}


def write_crops(folder: Path, share: float) -> None:
    """Write one HR crop of each photograph, ``share`` of the way down and right, and its bicubic half."""
    from basicsr.utils.matlab_functions import imresize

    for part in ("HR", "LR"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for file in sorted((ROOT / "data" / "photos").glob("*.png")):
        image = cv2.imread(str(file)).astype(np.float64) / 255
        top, left = (int((side - HIGH) * share) for side in image.shape[:2])
        crop = image[top : top + HIGH, left : left + HIGH]
        low = np.clip(imresize(crop, 0.5), 0, 1)
        for part, content in (("HR", crop), ("LR", low)):
            cv2.imwrite(str(folder / part / file.name), np.round(content * 255).astype(np.uint8))


def options(folder: Path, quantizer: str) -> dict[str, object]:
    """Return what a search needs of an option file."""
    dataset = {"name": "photos", "type": "PairedImageDataset", "io_backend": {"type": "disk"}}
    dataset |= {"dataroot_gt": str(folder / "HR"), "dataroot_lq": str(folder / "LR"), "filename_tmpl": "{}"}
    return {
        "scale": 2,
        "datasets": {"train": dataset},
        "network_g": NETWORK,
        "quantization": {"quantizer": quantizer, "bits": 4},
        "path": {"pretrain_network_g": str(ROOT / "weights" / "EDSR_x2_f32b5.pth")},
    }


def loss_elsewhere(problem: Problem, point: Point, others: ImageSet) -> float:
    """Return the loss of a point in dB on other images, with the bounds of the search."""
    measurer = problem.measurer
    luma = {pair.path: measurer._luma(pair.truth, rounded=True) for pair in others.pairs}

    def psnr() -> float:
        values = []
        for pair in others.pairs:
            error = (measurer._luma(measurer._run(pair.low), rounded=True) - luma[pair.path]).square().mean()
            values.append(10 * float(torch.log10(255**2 / error)))
        return sum(values) / len(values)

    full = psnr()
    with measurer.bank.using(problem.sites(point.assignment)):
        return full - psnr()


def compared(result: SearchResult, bits: int, others: ImageSet) -> str:
    """Return a table: equal bits against the choice of the same cost."""
    rows = [
        (
            name,
            f"{point.summary.file_bytes / 1e6:.3f}",
            f"{point.summary.bops / 1e12:.2f}",
            f"{point.loss:.3f}",
            f"{loss_elsewhere(result.problem, point, others):.3f}",
        )
        for name, point in ((f"{bits} bits everywhere", result.uniform[bits]), ("chosen", result.best))
    ]
    return text_table(("", "file MB", "BOPs T", "loss dB", "loss dB elsewhere"), rows)


def main() -> None:
    """Run the searches and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("work/search_bits"), help="folder for crops")
    parser.add_argument("--size", type=int, default=32, help="side of the measured part, LR pixels")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, share in (("chosen_on", 0.5), ("judged_on", 0.1), ("judged_on_too", 0.9)):
        write_crops(args.work / name, share)
    parts = [f"{provenance()}\n"]
    for quantizer in ("pams", "ddtb"):
        problem = problem_from(options(args.work / "chosen_on", quantizer), size=args.size)
        pairs: tuple[Pair, ...] = ()
        for name in ("judged_on", "judged_on_too"):
            pairs += problem_from(options(args.work / name, quantizer), size=args.size).images.pairs
        pairs = tuple(Pair(f"{index} {pair.path}", pair.low, pair.truth) for index, pair in enumerate(pairs))
        parts.append(f"### {quantizer.upper()}\n")
        for bits in (6, 4):
            equal = search_bits(problem, Budget("size", 1e3), checks=0).uniform[bits]
            result = search_bits(problem, Budget("size", equal.summary.file_bytes / 1e6))
            if bits == 6 and quantizer == "pams":
                parts.append(f"```text\n{table(result)}\n```\n")
            parts.append(f"```text\n{compared(result, bits, ImageSet(pairs, 'photos'))}\n```\n")
    page = Path(__file__).with_name("results") / "search_bits.md"
    page.write_text("# Bits for a budget\n\n" + "\n".join(parts))
    print(page.read_text())


if __name__ == "__main__":
    main()
