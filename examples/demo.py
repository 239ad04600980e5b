"""The whole way in one run: a float EDSR, 4-bit training with PAMS, integers in an engine, and what each step costs.

    make demo        or        python examples/demo.py --out demo_run

Needs nothing but the clone: photos of scikit-image, scikit-learn and data/photos, weights of weights/. Writes
OUT/demo.md (the tables it prints), OUT/demo.png (side by side), the checkpoint and the ONNX files. If it is stopped,
the same command continues the training.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

import srq_nni
from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import build_float, insert_quantizers
from srq_nni.compression.options import options_from
from srq_nni.models.options import read_options
from srq_nni.quantization.layers import calibrate
from srq_nni.speedup import ModelSpeedupONNXRuntime, ModelSpeedupOpenVINO, export_float_onnx, integer_simulator
from srq_nni.speedup.bench import BenchReport, benchmark, difference
from srq_nni.speedup.engine import EngineSpeedup

from demo_photos import HELD_OUT, SCALE, prepare  # isort: skip
from demo_picture import draw  # isort: skip
from basicsr.metrics import calculate_psnr, calculate_ssim  # isort: skip

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "basicsr_configs/train/train_PAMS_EDSR_x2_demo.yml"
WEIGHTS = ROOT / "weights/EDSR_x2_f32b5.pth"
LARGE = (1, 3, 180, 320)
Upscale = Callable[[torch.Tensor], torch.Tensor]


def read_image(path: Path) -> torch.Tensor:
    """Return an image as a float tensor (1, 3, H, W) in [0, 1], RGB."""
    pixels = cv2.imread(str(path))[..., ::-1].astype(np.float32) / 255
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]


def to_pixels(image: torch.Tensor) -> np.ndarray:
    """Return (1, 3, H, W) in [0, 1] as uint8 BGR (H, W, 3), rounded."""
    return image[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()[..., ::-1]


def calibrated(options: dict, images: Iterable[Path]) -> torch.nn.Module:
    """Return the quantized network right before training: float weights, bounds from some training images."""
    model = insert_quantizers(build_float(options["network_g"]), options_from(options["quantization"]))
    checkpoint.load_weights(model, WEIGHTS)
    calibrate(model, map(read_image, tqdm(list(images), desc="Calibrating")))
    return model


def train(out: Path, options: dict, overrides: list[str]) -> Path:
    """Run ``srq train`` in ``out``, show its progress as a bar, return the last checkpoint."""
    command = [sys.executable, "-m", "srq_nni", "train", "-opt", str(CONFIG), "--auto_resume"]
    command += ["--force_yml", *overrides] if overrides else []
    total = int(options["train"]["total_iter"])
    lines = []
    with (
        subprocess.Popen(command, cwd=out, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
        tqdm(total=total, desc="Training to 4 bits", unit="it") as bar,
    ):
        for line in process.stdout or ():
            lines.append(line)
            found = re.search(r"iter:\s*([\d,]+),.*(l_pix: \S+)", line)
            if found:
                bar.update(int(found[1].replace(",", "")) - bar.n)
                bar.set_postfix_str(found[2])
    if process.returncode:
        sys.exit(f"training failed with status {process.returncode}:\n{''.join(lines[-15:])}")
    return out / "experiments" / options["name"] / "models/net_g_latest.pth"


def evaluate(methods: dict[str, Upscale], folder: Path) -> tuple[list[list[str]], dict[str, dict[str, np.ndarray]]]:
    """Return rows of PSNR / SSIM on Y per image (crop 2) with their mean, and the images."""
    rows, images, scores = [], {}, {name: [] for name in methods}
    for image in HELD_OUT:
        low, high = read_image(folder / "LR" / f"{image}.png"), cv2.imread(str(folder / "HR" / f"{image}.png"))
        images[image] = {"HR": high}
        row = [image.split("-")[0]]
        for name, upscale in methods.items():
            pixels = to_pixels(upscale(low))
            psnr = calculate_psnr(pixels, high, crop_border=SCALE, test_y_channel=True)
            ssim = calculate_ssim(pixels, high, crop_border=SCALE, test_y_channel=True)
            images[image][name] = pixels
            scores[name].append((psnr, ssim))
            row.append(f"{psnr:.2f} / {ssim:.4f}")
        rows.append(row)
    means = [np.mean(scores[name], axis=0) for name in methods]
    rows.append(["mean", *(f"{psnr:.2f} / {ssim:.4f}" for psnr, ssim in means)])
    return rows, images


def exactness(name: str, engine: EngineSpeedup, simulator: Upscale, images: Iterable[Path]) -> list[str]:
    """Return cells: how many convolutions ran in integers, and how far the engine is from the integer simulator."""
    pairs = [(engine.inference(image)[0], simulator(image)) for image in map(read_image, images)]
    outputs, references = (torch.cat([pair[side].flatten() for pair in pairs]) for side in (0, 1))
    found = difference(outputs, references)
    kernels = engine.precision_report()
    ran = f"{kernels.integer_convolutions} of {len(kernels.kernels)}"
    return [name, ran, f"{found.psnr:.1f}", f"{found.largest:.1e}", f"{found.changed:.2%}"]


def speed_rows(report: BenchReport) -> list[list[str]]:
    """Return the cells of what ran: file size, time, and speed beside float32 in OpenVINO."""
    rows = []
    for row in report.rows:
        ratio = report.speed(row, "openvino", "float32")
        if row.wall is not None and ratio is not None:
            name = f"{row.engine} {row.precision}" + "".join(f" ({note})" for note in row.notes if "bfloat16" in note)
            rows.append([name, f"{row.file_bytes / 1e3:.0f}", f"{row.wall * 1e3:.0f}", f"{ratio:.2f}"])
    return rows


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def torch_upscale(model: torch.nn.Module) -> Upscale:
    """Return a function that runs ``model`` without gradients."""

    @torch.inference_mode()
    def run(image: torch.Tensor) -> torch.Tensor:
        return model(image)

    return run


def bicubic(image: torch.Tensor) -> torch.Tensor:
    """Upscale with OpenCV's bicubic interpolation."""
    pixels = image[0].permute(1, 2, 0).numpy()
    large = cv2.resize(pixels, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
    return torch.from_numpy(large).permute(2, 0, 1)[None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "demo_run", help="folder for everything the demo writes")
    parser.add_argument("--force_yml", nargs="+", default=[], help="change options of the training, as srq train does")
    args = parser.parse_args()
    out: Path = args.out.resolve()
    prepare(out)
    shutil.copy(WEIGHTS, out / WEIGHTS.name)
    options = read_options(CONFIG, args.force_yml)

    float_model = build_float(options["network_g"]).eval()
    checkpoint.load_weights(float_model, WEIGHTS)
    before = calibrated(options, sorted((out / "train/LR").glob("*.png"))[::5])
    trained = train(out, options, args.force_yml)
    after = srq_nni.load(trained)

    export_float_onnx(float_model, out / "EDSR_x2_float.onnx")
    openvino = ModelSpeedupOpenVINO(after, LARGE, onnx_path=out / "EDSR_x2_openvino.onnx")
    onnxruntime = ModelSpeedupONNXRuntime(after, LARGE, onnx_path=out / "EDSR_x2_onnxruntime.onnx")
    for engine in (openvino, onnxruntime):
        engine.compress()
    assert openvino.report is not None

    methods: dict[str, Upscale] = {
        "bicubic": bicubic,
        "float": torch_upscale(float_model),
        "4 bit, before training": torch_upscale(before),
        "4 bit, after training": torch_upscale(after),
        "4 bit, OpenVINO int8": lambda image: openvino.inference(image)[0],
    }
    rows, images = evaluate(methods, out / "test")
    tests = sorted((out / "test/LR").glob("*.png"))
    engines = [
        exactness(name, engine, torch_upscale(integer_simulator(after, engine=engine.engine)), tests)
        for name, engine in (("OpenVINO", openvino), ("ONNX Runtime", onnxruntime))
    ]
    speed = benchmark(after, engines=("openvino", "onnxruntime"), size=LARGE[2:], repeats=15, threads=None)
    draw(images, list(methods), out / "demo.png")
    parts = [
        "# PAMS at 4 bits on EDSR x2 (32 features, 5 blocks)",
        f"PSNR (dB) / SSIM on Y, crop {SCALE}; wiring {options['quantization']['wiring']}, "
        f"{openvino.report.certificate.coverage:.0%} of the multiplications have both operands in integers.",
        table(["photo", *methods], rows),
        "Engines against the integer simulator, on the same photos:",
        table(
            ["engine", "int8 convolutions", "PSNR dB", "largest difference (grey levels)", "8-bit values that differ"],
            engines,
        ),
        f"Files and speed for a {LARGE[3]}x{LARGE[2]} input (medians of {speed.repeats}, in turns, all cores; "
        f"{speed.machine}):",
        table(["engine and precision", "file kB", "ms", "speed-up"], speed_rows(speed)),
        str(openvino.report.certificate),
    ]
    text = "\n\n".join(parts) + "\n"
    (out / "demo.md").write_text(text)
    print(f"\n{text}\nPicture: {out / 'demo.png'}")


if __name__ == "__main__":
    main()
