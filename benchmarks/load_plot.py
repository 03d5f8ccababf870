"""Throughput against latency as a picture: one line for plain, one for speculative decoding, a point for each level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from redraft.benchmarks.report import Figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES = (10.5, 5.4)
DPI = 160
INK, FAINT, GRID = "#1f2933", "#52606d", "#e4e7eb"
COLOURS = {"plain": "#7b8794", "speculative": "#0b69a3"}
MARKERS = {"plain": "o", "speculative": "D"}
BESIDE = {"plain": (0, -13), "speculative": (0, 7)}
"""Where a point's name stands, in points: below one line and above the other, which may run close together."""
MARGIN = 0.065
"""Left edge of the picture, as a share of its width."""


def draw(levels: Sequence[Figures], title: str, subtitle: str, path: Path) -> None:
    """Write a PNG of ``levels`` to ``path``: throughput over the speed and over the first wait of one answer.

    Without pyplot: nothing is global, and no display is wanted.
    """
    # slow to import, and only wanted at the end
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    speed, wait = figure.subplots(1, 2, sharey=True)
    _panel(speed, levels, "per_user_tokens_per_second", 1.0)
    _panel(wait, levels, "ttft_p50", 1e3)
    _name(speed, "tokens/s of one answer, once begun  (right is better)")
    _name(wait, "time to first token, p50, ms  (left is better)")
    speed.set_ylabel("tokens/s of all answers together", color=INK, fontsize=9.5)
    figure.text(MARGIN, 0.94, title, fontsize=14, fontweight="bold", color=INK)
    points = "requests a second" if any("rate" in level for level in levels) else "users at once"
    figure.text(MARGIN, 0.893, f"{subtitle}. Numbers at the points: {points}.", fontsize=9, color=FAINT)
    handles, names = speed.get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="upper right",
        bbox_to_anchor=(0.99, 0.99),
        ncols=len(names) or 1,
        frameon=False,
        labelcolor=INK,
        fontsize=9.5,
    )
    figure.subplots_adjust(left=MARGIN, right=0.98, top=0.85, bottom=0.115, wspace=0.07)
    figure.savefig(path, format="png")


def _panel(axes: Axes, levels: Sequence[Figures], figure: str, scale: float) -> None:
    from matplotlib.patheffects import withStroke

    for side, colour in COLOURS.items():
        measured = [level for level in levels if level[side] is not None and level[side][figure] is not None]
        if not measured:
            continue
        across = [scale * level[side][figure] for level in measured]
        up = [level[side]["tokens_per_second"] for level in measured]
        axes.plot(across, up, color=colour, marker=MARKERS[side], label=side, linewidth=1.8, markersize=5.5)
        for x, y, level in zip(across, up, measured, strict=True):
            axes.annotate(
                f"{level.get('rate', level.get('concurrency')):g}",
                (x, y),
                BESIDE[side],
                textcoords="offset points",
                ha="center",
                fontsize=8.5,
                fontweight="bold",
                color=colour,
                # readable where a line runs through it
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )
    axes.margins(0.12)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, length=0, labelsize=9)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    for edge in ("left", "bottom"):
        axes.spines[edge].set_color(FAINT)


def _name(axes: Axes, text: str) -> None:
    axes.set_xlabel(text, color=INK, fontsize=9.5, labelpad=6)
