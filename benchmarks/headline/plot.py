"""How τ rose, over operations and over seconds: the trunk, its arms as branches, EAGLE-3 from nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from redraft.benchmarks.headline.findings import REFERENCE, named
from redraft.benchmarks.headline.plan import TRUNK
from redraft.benchmarks.headline.runs import Cost, Trained
from redraft.benchmarks.load_plot import DPI, FAINT, GRID, INCHES, INK, MARGIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    TRUNK: "#7b8794",
    REFERENCE: "#0b69a3",
    "draft-opd": "#c2410c",
    "opd-forward": "#d99a00",
    "eagle3": "#3f7d3a",
}
MORE = ("#7c3aed", "#be185d", "#0f766e", "#854d0e", "#4338ca", "#b91c1c", "#15803d", "#475569")
"""Of the other arms, in turn."""
MARKERS = "oDs^vPX<>p"
UNITS = {1e15: "PFLOP", 1e12: "TFLOP", 1e9: "GFLOP"}


def draw(runs: Sequence[Trained], equal: bool, path: Path) -> None:
    """Write a PNG; only what was measured is a point.  ``equal``: whether the arms spent equal operations."""
    # slow to import, and only wanted at the end
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    operations, seconds = figure.subplots(1, 2, sharey=True)
    most = max(run.total.flops for run in runs)
    unit = next((size for size in UNITS if most >= size), 1e9)
    _panel(operations, runs, lambda cost: cost.flops / unit)
    _panel(seconds, runs, lambda cost: cost.seconds)
    operations.set_xlabel(f"{UNITS[unit]} of training, the trunk's included", color=INK, fontsize=9.5, labelpad=6)
    seconds.set_xlabel("seconds of training, the trunk's included", color=INK, fontsize=9.5, labelpad=6)
    operations.set_ylabel("τ: tokens a round, greedy chain, held-out answers", color=INK, fontsize=9.5)
    figure.text(MARGIN, 0.94, "EAGLE-3, DFlash by SFT and Draft-OPD in training", fontsize=14, weight="bold", color=INK)
    told = "Arms branch from the trunk; the learning rate falls to 0 at the end of each arm, not of the trunk. " + (
        "All arms spent equal operations." if equal else "Arms did NOT spend equal operations."
    )
    figure.text(MARGIN, 0.893, told, fontsize=9, color=FAINT)
    handles, names = operations.get_legend_handles_labels()
    last = {run.name: run.points[-1].tau for run in runs if run.points}
    best = sorted(zip(handles, names, strict=True), key=lambda pair: -last[pair[1]])
    operations.legend(
        [handle for handle, _ in best],
        [f"{name}  {last[name]:.2f}" for _, name in best],
        loc="lower right",
        frameon=False,
        labelcolor=INK,
        fontsize=9,
    )
    figure.subplots_adjust(left=MARGIN, right=0.98, top=0.85, bottom=0.115, wspace=0.07)
    figure.savefig(path, format="png")


def _panel(axes: Axes, runs: Sequence[Trained], across: Callable[[Cost], float]) -> None:
    trunk = named(runs, TRUNK)
    more = iter(MORE * len(runs))
    for number, run in enumerate(runs):
        colour = COLOURS.get(run.name) or next(more)
        points = [(across(run.before + point.cost), point.tau) for point in run.points]
        if not points:
            continue
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(
            *zip(*points, strict=True), color=colour, marker=marker, markersize=4.5, linewidth=1.8, label=run.name
        )
        if run.before.flops and trunk is not None and trunk.points:
            root = (across(trunk.points[-1].cost), trunk.points[-1].tau)
            axes.plot(*zip(root, points[0], strict=True), color=colour, linewidth=1.2, linestyle=":")
    axes.set_xlim(left=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, length=0, labelsize=9)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    for edge in ("left", "bottom"):
        axes.spines[edge].set_color(FAINT)
