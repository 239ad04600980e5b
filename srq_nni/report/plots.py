"""The figures of a report, as PNG in a light and a dark theme."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler

from srq_nni.report.curves import Curves, Series
from srq_nni.report.images import Comparison
from srq_nni.report.layers import TensorReport

THEMES = ("light", "dark")
_COLOURS = {
    "light": {"text": "#1f2328", "grid": "#d0d7de", "lines": ["#1f6feb", "#c2410c", "#15803d", "#7e22ce", "#be185d"]},
    "dark": {"text": "#e6edf3", "grid": "#3d444d", "lines": ["#6cb2ff", "#ff9e64", "#6fdd8b", "#d2a8ff", "#ff8ac0"]},
}
_SIZE = (5.4, 3.1)  # inches; at the width of a phone 10 points are then 9 pixels
_DPI = 180


@dataclass(frozen=True)
class Figure:
    """One figure: PNG bytes of each theme, and what a reader who cannot see it needs to know."""

    name: str
    title: str
    description: str
    png: Mapping[str, bytes]


def _theme(theme: str) -> AbstractContextManager[None]:
    colours: dict[str, Any] = _COLOURS[theme]
    text, grid = colours["text"], colours["grid"]
    return matplotlib.rc_context(
        {
            "font.size": 10,
            "axes.prop_cycle": cycler(color=colours["lines"]),
            "axes.edgecolor": grid,
            "axes.grid": True,
            "axes.labelcolor": text,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlecolor": text,
            "axes.titlesize": 10,
            "figure.figsize": _SIZE,
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "grid.color": grid,
            "grid.linewidth": 0.6,
            "legend.frameon": False,
            "legend.labelcolor": text,
            "text.color": text,
            "xtick.color": text,
            "ytick.color": text,
            "image.cmap": "viridis" if theme == "light" else "plasma",
        }
    )


def _in_both_themes(name: str, title: str, description: str, draw: Any) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    png = {}
    for theme in THEMES:
        with _theme(theme):
            figure = Canvas(layout="constrained")
            FigureCanvasAgg(figure)
            draw(figure)
            file = io.BytesIO()
            figure.savefig(file, dpi=_DPI, format="png")
            png[theme] = file.getvalue()
    return Figure(name, title, description, png)


def training_figures(curves: Curves) -> list[Figure]:
    """Return the figures of losses, of each metric and of learning rates; those without data are left out."""
    figures = []
    if curves.losses:
        figures.append(_lines("losses", "Training losses", curves.losses, "loss", logarithmic=True))
    kinds = dict.fromkeys(name.rpartition(" ")[2] for name in curves.metrics)
    for kind in kinds:
        series = {name.rpartition(" ")[0]: one for name, one in curves.metrics.items() if name.endswith(f" {kind}")}
        unit = f"{kind.upper()} (dB)" if kind == "psnr" else kind.upper()
        figures.append(_lines(f"metric_{kind}", f"Validation {kind.upper()}", series, unit))
    if curves.rates:
        figures.append(_lines("learning_rates", "Learning rates", curves.rates, "learning rate", logarithmic=True))
    return figures


def _lines(name: str, title: str, series: Mapping[str, Series], unit: str, *, logarithmic: bool = False) -> Figure:
    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for label, points in series.items():
            marker = "o" if len(points) < 25 else None
            axes.plot(list(points), list(points.values()), label=label, marker=marker, markersize=3, linewidth=1.4)
        positive = all(value > 0 for points in series.values() for value in points.values())
        if logarithmic and positive:
            axes.set_yscale("log")
        axes.set_xlabel("iteration")
        axes.set_ylabel(unit)
        axes.legend()

    return _in_both_themes(name, title, f"{title}: {', '.join(series)} over iterations.", draw)


_QUANTIZER_FIGURES = {
    "bounds": ("Bounds over time", "bound (unit of the activation)", ("alpha", "upper", "lower")),
    "gates": ("Gate values over time", "factor of the bound, mean over images", ("gate_upper", "gate_lower")),
    "clipped": ("Clipped activations over time", "share", ("clipped",)),
}


def quantizer_figures(curves: Mapping[str, Mapping[str, Series]]) -> list[Figure]:
    """Return figures of bounds, gates and clipped shares over time: a line for each layer, coloured by depth."""
    figures = []
    for name, (title, unit, kinds) in _QUANTIZER_FIGURES.items():
        present = {kind: curves[kind] for kind in kinds if curves.get(kind)}
        if present:
            figures.append(_by_depth(name, title, unit, present))
    return figures


def _by_depth(name: str, title: str, unit: str, curves: Mapping[str, Mapping[str, Series]]) -> Figure:
    layers = list(dict.fromkeys(layer for series in curves.values() for layer in series))

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        colours = matplotlib.colormaps[matplotlib.rcParams["image.cmap"]]
        scale = matplotlib.colors.Normalize(0, max(1, len(layers) - 1))
        for kind, series in curves.items():
            style = "--" if kind.endswith("lower") else "-"
            for layer, points in series.items():
                colour = colours(0.08 + 0.8 * scale(layers.index(layer)))
                axes.plot(list(points), list(points.values()), style, color=colour, linewidth=1)
        axes.set_xlabel("iteration")
        axes.set_ylabel(unit)
        dashed = next((kind for kind in curves if kind.endswith("lower")), None)
        solid = next(kind for kind in curves if kind != dashed)
        styles = f"{solid} solid, {dashed} dashed; " if dashed else ""
        axes.set_title(f"{styles}dark to bright: first to last layer", fontsize=8.5)

    described = f"{title} of {len(layers)} layers, first {layers[0]}, last {layers[-1]}."
    return _in_both_themes(name, title, described, draw)


def error_figure(tensors: Sequence[TensorReport]) -> Figure | None:
    """Return the signal-to-noise ratio of each tensor, activations and weights, along the network."""
    groups = {
        "activations": [tensor for tensor in tensors if not tensor.name.endswith(".weight")],
        "weights": [tensor for tensor in tensors if tensor.name.endswith(".weight")],
    }
    shown = {label: group for label, group in groups.items() if group}
    if not shown:
        return None

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for label, group in shown.items():
            axes.plot([tensor.snr for tensor in group], marker="o", markersize=3, linewidth=1, label=label)
        axes.set_xlabel("layer, from input to output")
        axes.set_ylabel("SNR of quantization (dB)")
        axes.legend()

    worst = min((tensor for group in shown.values() for tensor in group), key=lambda tensor: tensor.snr)
    described = f"Signal-to-noise ratio of quantization along the network; lowest is {worst.name}, {worst.snr:.1f} dB."
    return _in_both_themes("quantization_error", "Quantization error of each layer", described, draw)


def histogram_sheet(tensors: Iterable[TensorReport], columns: int = 4) -> Figure | None:
    """Return one sheet with the histogram of every activation and its grid."""
    shown = [tensor for tensor in tensors if not tensor.name.endswith(".weight")]
    if not shown:
        return None
    rows = -(-len(shown) // columns)

    def draw(figure: Any) -> None:
        figure.set_size_inches(2.6 * columns, 1.7 * rows)
        for axes, tensor in zip(figure.subplots(rows, columns, squeeze=False).flat, shown, strict=False):
            edges = np.linspace(tensor.lowest, tensor.highest, len(tensor.counts) + 1)
            axes.stairs(tensor.counts, edges, fill=True, alpha=0.8)
            for level in tensor.levels if len(tensor.levels) <= 32 else (tensor.levels[0], tensor.levels[-1]):
                axes.axvline(level, color=matplotlib.rcParams["axes.prop_cycle"].by_key()["color"][1], linewidth=0.6)
            axes.set_yscale("symlog", linthresh=1)
            axes.set_yticks([])
            axes.tick_params(labelsize=6)
            axes.set_title(f"{tensor.name}, {tensor.snr:.1f} dB", fontsize=7)
        for axes in figure.axes[len(shown) :]:
            axes.set_axis_off()

    return _in_both_themes("histograms", "Histograms of activations", "Histogram and grid of every activation.", draw)


def crop_sheet(comparison: Comparison) -> Figure | None:
    """Return one sheet of the crops: a row an image, a column a method, the difference map last."""
    if not comparison.images:
        return None
    columns = list(comparison.images[0].crops)

    def draw(figure: Any) -> None:
        figure.set_size_inches(1.7 * (len(columns) + 1), 1.8 * len(comparison.images))
        grid = figure.subplots(len(comparison.images), len(columns) + 1, squeeze=False)
        for row, image in zip(grid, comparison.images, strict=True):
            for axes, column in zip(row, columns, strict=False):
                axes.imshow(image.crops[column], interpolation="nearest")
                axes.set_title(column if image is comparison.images[0] else "", fontsize=8)
            row[-1].imshow(image.difference, cmap="inferno", vmin=0, vmax=max(1.0, float(image.difference.max())))
            row[-1].set_title("|quantized - float|" if image is comparison.images[0] else "", fontsize=8)
            row[0].set_ylabel(image.name[:18], fontsize=7)
            for axes in row:
                axes.set_xticks([])
                axes.set_yticks([])

    return _in_both_themes("crops", "Crops", "The same crop of each method and the difference map.", draw)
