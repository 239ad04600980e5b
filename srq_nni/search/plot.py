"""The trade of a search as a picture: loss against cost, for equal bits and for what was chosen."""

from __future__ import annotations

import io

from srq_nni.search.budget import UNITS
from srq_nni.search.run import Point, SearchResult

LABELS = {"size": "parameters, MB", "bops": "BOPs at 1280x720, T"}


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return those (cost, loss) that no other point beats in both, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, loss in sorted(points):
        if not front or loss < front[-1][1]:
            front.append((cost, loss))
    return front


def pareto_plot(result: SearchResult) -> bytes:
    """Return the picture as PNG: every assignment that was measured, none that was only predicted."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def place(point: Point) -> tuple[float, float]:
        return result.budget.cost(point.summary), point.loss

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    tried = [place(point) for point in result.tried]
    axes.plot(*zip(*pareto_front(tried), strict=True), drawstyle="steps-post", color="tab:blue", lw=1, alpha=0.6)
    costs, losses = zip(*tried, strict=True)
    axes.scatter(costs, losses, s=14, color="tab:blue", label="measured")
    for index, (bits, point) in enumerate(result.uniform.items()):
        cost, loss = place(point)
        label = "equal bits" if index == 0 else None
        axes.scatter([cost], [loss], marker="s", s=36, facecolor="none", edgecolor="tab:orange", label=label)
        axes.annotate(f"{bits}", (cost, loss), textcoords="offset points", xytext=(7, -3), color="tab:orange")
    cost, loss = place(result.best)
    axes.scatter([cost], [loss], marker="*", s=160, color="tab:red", zorder=3, label="chosen")
    kind = result.budget.kind
    line = axes.axhline if kind == "loss" else axes.axvline
    line(result.budget.limit, color="gray", lw=1, ls="--", label=f"limit {result.budget.limit:g} {UNITS[kind]}")
    axes.set(xlabel=LABELS[result.budget.cost_kind], ylabel="loss before training, dB on Y")
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_ylim(bottom=min(0.0, *(loss for _, loss in tried)))
    axes.grid(alpha=0.3)
    axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
