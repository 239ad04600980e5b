"""How far each engine is from the integer simulator, and what causes the gaps of other placements.

    python benchmarks/exactness.py --out benchmarks/results/exactness.md [--checkpoints RUN/net_g_latest.pth ..]

The first table takes ``weights/EDSR_x2_f32b5.pth`` with bounds calibrated on other photographs, for each method, width
and wiring; then the checkpoints, if any are given; each on photographs of ``data/photos``. Where an engine differs from
the simulator, ``explain_difference`` finds by which codes, and how far from ties these are. The second table writes the
same network in ways that ``srq export`` does not, to measure what each rule of the export is for. On a CPU with
bfloat16 the third has float layers in bfloat16. A command that begins with ``python -m tests.emulation.other_cpu CPU``
measures another CPU than this one.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

import srq_nni
from srq_nni.archs.quantized_arch import QuantizedNetwork
from srq_nni.atomic import atomic_file
from srq_nni.quantization.layers import calibrate
from srq_nni.speedup import ModelSpeedupONNXRuntime, ModelSpeedupOpenVINO, explain_difference, integer_simulator
from srq_nni.speedup.byte_products import has_vnni
from srq_nni.speedup.engine_rules import ENGINES, INT8, UINT8, Container, EngineRules
from srq_nni.speedup.graph import build_graph
from srq_nni.speedup.openvino import BFLOAT16, BFLOAT16_TAIL, has_bfloat16

from provenance import provenance  # isort: skip

ROOT = Path(__file__).resolve().parent.parent
EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 32, "num_block": 5, "upscale": 2}
NETWORK = {**EDSR, "rgb_mean": [0.4488, 0.4371, 0.4040]}
SPEEDUPS = {"openvino": ModelSpeedupOpenVINO, "onnxruntime": ModelSpeedupONNXRuntime}
CROP = 64
Row = tuple[str, ...]


def photographs(count: int) -> list[torch.Tensor]:
    """Return central crops (1, 3, CROP, CROP) of the photographs of the repository, RGB in [0, 1], half their size."""
    images = []
    for path in sorted((ROOT / "data/photos").glob("*.png"))[:count]:
        pixels = cv2.imread(str(path))[..., ::-1].astype(np.float32) / 255
        pixels = cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        top, left = ((size - CROP) // 2 for size in pixels.shape[:2])
        crop = np.ascontiguousarray(pixels[top : top + CROP, left : left + CROP].transpose(2, 0, 1))
        images.append(torch.from_numpy(crop)[None])
    return images


def calibrated(method: str, bits: int, wiring: str, images: list[torch.Tensor]) -> nn.Module:
    """Return the float EDSR of the repository with quantizers whose bounds come from ``images``."""
    network = QuantizedNetwork(NETWORK, {"quantizer": method, "bits": bits, "wiring": wiring})
    state = torch.load(ROOT / "weights/EDSR_x2_f32b5.pth", weights_only=True)["params"]
    network.load_state_dict({**network.state_dict(), **state})
    calibrate(network, images)
    return network


def compare(speedup: Any, simulator: nn.Module, images: list[torch.Tensor]) -> Row:
    """Return PSNR, largest difference, and the shares of values that differ, as cells."""
    with torch.inference_mode():
        pairs = [(speedup.inference(image)[0].double() * 255, simulator(image).double() * 255) for image in images]
    error = torch.cat([(a - b).abs().flatten() for a, b in pairs])
    levels = torch.cat([(a.round() - b.round()).abs().flatten() for a, b in pairs])
    square = float(error.square().mean())
    psnr = 10 * math.log10(255**2 / square) if square else math.inf
    return (
        f"{psnr:.1f}",
        f"{float(error.max()):.2g}",
        f"{float((error > 0.01).double().mean()):.2%}",
        (f"{int(levels.max())} on {float((levels > 0).double().mean()):.3%}"),
    )


def exported(network: nn.Module, engine: str, images: list[torch.Tensor]) -> Row:
    """Return the cells of a network that ``export_onnx`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        speedup = SPEEDUPS[engine](network, (1, 3, CROP, CROP), onnx_path=Path(folder) / "model.onnx", threads=1)
        speedup.compress()
        report = speedup.precision_report()
        cells = compare(speedup, integer_simulator(network, engine=engine), images)
        assert speedup.report is not None
        lossy = len(speedup.report.inexact_without_vnni)
    return (
        *cells,
        *causes(network, engine, images),
        f"{report.integer_convolutions} of {len(report.kernels)}",
        str(lossy),
    )


def causes(network: nn.Module, engine: str, images: list[torch.Tensor]) -> Row:
    """Return what a difference is, by which codes, how far from ties, and what is left with them, as cells."""
    found = explain_difference(network, images, engine, threads=1)
    count = sum(others.count for others in found.others)
    return found.kind, str(count), f"{found.distance:.1g}" if count else "-", f"{found.remaining:.2g}"


def written_otherwise(
    network: nn.Module, engine: str, rules: EngineRules, images: list[torch.Tensor], *, clips: bool = True
) -> Row:
    """Return the cells of a network that is written by other rules, without the Clips if asked."""
    proto, _ = build_graph(network, rules)
    if not clips:
        _drop_clips(proto)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        speedup = SPEEDUPS[engine](path, (1, 3, CROP, CROP), threads=1)
        speedup.compress()
        report = speedup.precision_report()
        cells = compare(speedup, integer_simulator(network, engine=engine), images)
    return (*cells, f"{report.integer_convolutions} of {len(report.kernels)}")


def _drop_clips(proto: Any) -> None:
    kept, renamed = [], {}
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        if node.op_type == "Clip":
            renamed[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(kept)


def beside_bfloat16(
    network: nn.Module, method: str, bits: int, wiring: str, images: list[torch.Tensor]
) -> Iterator[Row]:
    """Yield rows of a network whose float layers OpenVINO runs in bfloat16: those of its choice, or the tail alone."""
    simulator = integer_simulator(network)
    for precision in (BFLOAT16, BFLOAT16_TAIL):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            shape = (1, 3, CROP, CROP)
            speedup = ModelSpeedupOpenVINO(network, shape, onnx_path=path, threads=1, float_precision=precision)
            speedup.compress()
            cells = compare(speedup, simulator, images)
            report = speedup.precision_report()
        in_bfloat16 = sum(kind == "bf16" for _, kind, _ in report.kernels)
        ran = f"{report.integer_convolutions} of {len(report.kernels)}", str(in_bfloat16)
        yield method, str(bits), wiring, precision, *cells, *ran


def variants() -> Iterator[tuple[str, str, EngineRules, bool]]:
    """Yield (engine, what is different, rules, whether codes are clipped)."""
    openvino, runtime = ENGINES["openvino"], ENGINES["onnxruntime"]
    high = (Container(np.uint8, 128),)
    change = dataclasses.replace
    yield "openvino", "as exported", openvino, True
    yield "openvino", "QuantizeLinear divides and rounds by itself", change(openvino, rounds_first=False), True
    yield "openvino", "the same, float Clip before it", change(openvino, rounds_first=False, clip="float"), True
    yield (
        "openvino",
        "the same, uint8 with zero point 128",
        change(openvino, rounds_first=False, containers=high),
        True,
    )
    yield "openvino", "Div and Round, uint8 with zero point 128", change(openvino, containers=high), True
    yield "openvino", "int8 always, weights not doubled", change(openvino, containers=(INT8,), even_weights=False), True
    yield "openvino", "no Clip at all", openvino, False
    yield "onnxruntime", "as exported", runtime, True
    yield "onnxruntime", "uint8 with zero point 128", change(runtime, containers=(UINT8, *high)), True
    yield "onnxruntime", "float biases", change(runtime, integer_bias=False), True


def table(head: Row, rows: list[Row]) -> str:
    """Return a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 7, 6, 4, 3, 2])
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
    checkpoints = {path.parent.parent.name: srq_nni.load(path) for path in args.checkpoints}
    images = photographs(args.images)
    start = photographs(100)[args.images :] or images
    measured: list[Row] = []
    for method in ("pams", "ddtb"):
        for bits in args.bits:
            for wiring in ("paper", "deploy", "official"):
                network = calibrated(method, bits, wiring, start)
                for engine in SPEEDUPS:
                    measured.append((method, str(bits), wiring, engine, *exported(network, engine, images)))
                    sys.stdout.write(" ".join(measured[-1]) + "\n")
    trained = [
        (name, engine, *exported(network, engine, images))
        for name, network in checkpoints.items()
        for engine in SPEEDUPS
    ]
    otherwise: list[Row] = []
    for bits in (8, 4):
        network = calibrated("pams", bits, "deploy", start)
        for engine, what, rules, clips in variants():
            otherwise.append((str(bits), engine, what, *written_otherwise(network, engine, rules, images, clips=clips)))
            sys.stdout.write(" ".join(otherwise[-1]) + "\n")
    beside: list[Row] = []
    for method in ("pams", "ddtb") if has_bfloat16() else ():
        for bits in args.bits:
            for wiring in ("paper", "deploy"):
                network = calibrated(method, bits, wiring, start)
                beside += beside_bfloat16(network, method, bits, wiring, images)
                sys.stdout.write(" ".join(beside[-1]) + "\n")
    integers = "convolutions in integers"
    cells = ("PSNR, dB", "largest, levels", "over 0.01 levels", "after rounding, levels")
    why = ("cause", "other codes", "largest distance from a tie, steps", "largest with the engine's codes, levels")
    columns = (*cells, *why, integers, "layers exact with VNNI only")
    parts = [
        "# Exactness: engines against the integer simulator",
        f"{provenance()}. VNNI: {'yes' if has_vnni() else 'no'}. {_versions()} {len(images)} photographs of "
        f"{CROP} x {CROP} pixels, x2, before rounding to 8 bits unless stated.",
        "## Calibrated EDSR (32 features, 5 blocks), as exported",
        "Cause: `exact` is below 0.01 levels. `tie`: codes differ whose values are at a tie, at most the stated part "
        "of a step away, and nothing else; with these codes of the engine the simulator gives the image of the engine. "
        "`lossy`: more differs, and there are layers that this CPU rounds or saturates. `unexplained`: more differs.",
        table(("method", "bits", "wiring", "engine", *columns), measured),
    ]
    if trained:
        parts += ["## Trained", table(("run", "engine", *columns), trained)]
    parts += [
        "## Written in other ways (PAMS, wiring deploy)",
        table(("bits", "engine", "file", *cells, integers), otherwise),
    ]
    if beside:
        parts += [
            "## Float layers in bfloat16, on OpenVINO",
            "`bfloat16` are the layers that OpenVINO chooses, `bfloat16-tail` those behind the last quantizer.",
            table(("method", "bits", "wiring", "floats", *cells, integers, "in bfloat16"), beside),
        ]
    with atomic_file(args.out) as file:
        file.write(("\n\n".join(parts) + "\n").encode())


def _versions() -> str:
    import onnxruntime
    import openvino

    return f"OpenVINO {openvino.__version__.split('-')[0]}, ONNX Runtime {onnxruntime.__version__}."


if __name__ == "__main__":
    main()
