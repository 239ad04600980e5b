"""Writing the report of an experiment: one HTML page that needs nothing else, and its figures as PNG files."""

from __future__ import annotations

import base64
import datetime
import io
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from srq_nni import checkpoint
from srq_nni.atomic import atomic_file, write_error
from srq_nni.errors import DataError, SRQError
from srq_nni.report import plots
from srq_nni.report.curves import quantizer_curves, read_logs
from srq_nni.report.experiment import Experiment, open_experiment
from srq_nni.report.images import Comparison, compare_images, mean_scores
from srq_nni.report.layers import TensorReport, tensor_reports
from srq_nni.speedup.bench.report import HEAD, BenchReport
from srq_nni.speedup.certificate import certify

PAGE = "report.html"


def write_report(
    experiment: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, *, images: int = 8
) -> Path:
    """Write ``report.html`` and its PNG files into the folder ``out`` and return the page.

    The page holds everything it shows and loads nothing: it can be mailed. What the experiment does not have, such as
    validation images, is said on the page.

    Args:
        experiment: folder ``experiments/NAME`` of a run with ``model_type: QuantSRModel``.
        out: folder to write to; ``EXPERIMENT/report`` by default. It is made if only its last part is missing.
        images: how many validation images are shown, from 1.

    Raises:
        DataError: if there is no such experiment, or ``out`` is a file.
        WriteError: if the disk refuses the folder or a file.
        CheckpointError: if the experiment has no checkpoint of srq-nni yet.
    """
    if images < 1:
        raise DataError(f"--images: {images} is not allowed; give a number from 1")
    run = open_experiment(experiment)
    folder = _writable(run.folder / "report" if out is None else Path(os.path.expanduser(out)))
    network = checkpoint.load(run.newest)
    comparison = compare_images(run, network, images)
    tensors = tensor_reports(network, comparison.low_resolution)
    curves = read_logs(run.logs, _whole((run.options.get("val") or {}).get("val_freq")))
    training = plots.training_figures(curves)
    quantizers = plots.quantizer_figures(quantizer_curves(run))
    error = plots.error_figure(tensors)
    sheets = [plots.histogram_sheet(tensors), plots.crop_sheet(comparison)]
    page = _render(
        run=run,
        facts=_facts(run, network, comparison),
        training=training,
        quantizers=quantizers,
        error=error,
        tensors=tensors,
        comparison=comparison,
        means=mean_scores(comparison),
        sizes=_sizes(run, network),
        head=HEAD,
        benchmarks=_benchmarks(run),
    )
    for figure in filter(None, [*training, *quantizers, error, *sheets]):
        for theme, suffix in zip(plots.THEMES, ("", "_dark"), strict=True):
            _write(folder / f"{figure.name}{suffix}.png", figure.png[theme])
    _write(folder / PAGE, page.encode())
    return folder / PAGE


def _writable(folder: Path) -> Path:
    if folder.is_file():
        raise DataError(f"'{folder}' is a file; give a folder with -o")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from None
    return folder


def _write(path: Path, content: bytes) -> None:
    with atomic_file(path) as file:
        file.write(content)


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 1 else None


def _facts(run: Experiment, network: nn.Module, comparison: Comparison) -> list[tuple[str, str]]:
    """Return the line of figures at the top of the page."""
    quantization = run.metadata["quantization"]
    bits = quantization.get("bits", "by layer")
    if isinstance(bits, Mapping):
        bits = f"{bits['weight']} weight / {bits['activation']} activation"
    facts = [
        ("network", str(run.metadata["network"].get("type", "?"))),
        ("quantizer", str(quantization.get("quantizer", "?"))),
        ("bits", str(bits)),
        ("wiring", str(quantization.get("wiring", "config_list"))),
    ]
    try:
        facts.append(("coverage", f"{certify(network).coverage:.1%}"))
    except SRQError:
        facts.append(("coverage", "not known"))
    means = mean_scores(comparison)
    psnr = next((metric for metric in comparison.metrics if "psnr" in metric.lower()), None)
    if psnr and means:
        facts.append((f"{psnr.upper()} quantized", f"{means['quantized'][psnr]:.2f} dB"))
        if "float" in means:
            facts.append(("lost to float", f"{means['float'][psnr] - means['quantized'][psnr]:+.2f} dB"))
    return facts


def _sizes(run: Experiment, network: nn.Module) -> list[tuple[str, str]]:
    """Return the sizes of the network in float32, of its checkpoint and of what was exported into the folder."""
    values = sum(value.numel() for key, value in network.state_dict().items() if not checkpoint.is_quantizer_key(key))
    files = [
        run.newest,
        *sorted(path for ending in ("onnx", "safetensors") for path in run.folder.rglob(f"*.{ending}")),
    ]
    sizes = [("network in float32", 4 * values), *((path.name, path.stat().st_size) for path in files)]
    return [(name, f"{size / 1e3:,.0f} kB") for name, size in sizes]


def _benchmarks(run: Experiment) -> list[BenchReport]:
    """Return the results of ``srq bench --json`` that lie in the folder, by name; other JSON files are passed over."""
    found = []
    for path in sorted(run.folder.glob("*.json")):
        with suppress(DataError, OSError, UnicodeDecodeError, RecursionError):
            found.append(BenchReport.from_json(path.read_text(encoding="utf-8")))
    return found


def _render(**content: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("srq_nni.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {
        "png": _png,
        "picture": _data_url,
        "histogram": _histogram,
        "db": _db,
        "heat": _heat,
        "score": _score,
    }
    from srq_nni import __version__

    today = datetime.date.today().isoformat()
    return environment.get_template("report.html").render(version=__version__, today=today, **content)


def _data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _png(pixels: np.ndarray) -> str:
    """Return uint8 RGB (H, W, 3) as a data URL."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", optimize=True)
    return _data_url(file.getvalue())


def _heat(difference: np.ndarray) -> np.ndarray:
    """Return a map of grey levels as colours, black 0 and yellow the largest, at least 1."""
    import matplotlib

    colours = matplotlib.colormaps["inferno"](difference / max(1.0, float(difference.max())))
    return (colours[..., :3] * 255).round().astype(np.uint8)


def _db(value: float) -> str:
    return "exact" if math.isinf(value) and value > 0 else f"{value:.1f}"


def _score(value: float) -> str:
    """PSNR and the like in hundredths, what lies between -1 and 1 (SSIM) in ten thousandths."""
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.2f}"


def _histogram(tensor: TensorReport, width: int = 192, height: int = 44) -> dict[str, Any]:
    """Return what an SVG of a histogram needs: its outline (logarithmic counts) and the places of the levels."""
    top = math.log1p(max(tensor.counts) or 1)
    heights = [height * math.log1p(count) / top for count in tensor.counts]
    step = width / len(heights)
    tops = [(i * step, (i + 1) * step, height - one) for i, one in enumerate(heights)]
    outline = "".join(f"L{left:.1f},{y:.1f}L{right:.1f},{y:.1f}" for left, right, y in tops)
    span = tensor.highest - tensor.lowest or 1.0
    levels: Sequence[float] = tensor.levels if len(tensor.levels) <= 32 else (tensor.levels[0], tensor.levels[-1])
    places = [(level - tensor.lowest) / span * width for level in levels]
    return {
        "width": width,
        "height": height,
        "path": f"M0,{height}{outline}L{width},{height}Z",
        "levels": [f"{place:.1f}" for place in places if 0 <= place <= width],
    }
