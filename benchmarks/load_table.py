"""The levels of a load as a table for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from redraft.benchmarks.report import Figures

Format = Callable[[Any], str]


def _milliseconds(value: float) -> str:
    return f"{1e3 * value:.1f}" if value < 1 else f"{1e3 * value:.0f}"


SIDE: dict[str, tuple[str, Format]] = {
    "tokens_per_second": ("tok/s", "{:.1f}".format),
    "steady_tokens_per_second": ("steady", "{:.1f}".format),
    "per_user_tokens_per_second": ("per user", "{:.1f}".format),
    "ttft_p50": ("TTFT ms p50", _milliseconds),
    "ttft_p90": ("p90", _milliseconds),
    "ttft_p99": ("p99", _milliseconds),
    "itl_p50": ("ITL ms p50", _milliseconds),
    "itl_p90": ("p90", _milliseconds),
    "itl_p99": ("p99", _milliseconds),
    "tau": ("τ", "{:.2f}".format),
    "nodes_per_round": ("nodes", "{:.1f}".format),
    "requests": ("requests", str),
    "errors": ("errors", str),
}
LEVEL: dict[str, tuple[str, Format]] = {
    "speedup": ("speed-up", "{:.2f}".format),
    "parity": ("parity", lambda value: f"{100 * value:.1f} %"),
}
"""Shown once a level, with its last side."""


def table(levels: Sequence[Figures]) -> str:
    """Two lines a level, plain and speculative, in aligned columns."""
    load = "requests/s" if any("rate" in level for level in levels) else "users"
    rows = [[load, "decoding", *(title for title, _ in (SIDE | LEVEL).values())]]
    for level in levels:
        sides = [side for side in ("plain", "speculative") if level[side] is not None]
        for side in sides:
            name = f"{level.get('rate', level.get('concurrency')):g}"
            cells = [_cell(level[side][key], form) for key, (_, form) in SIDE.items()]
            shared = [_cell(level[key], form) if side == sides[-1] else "" for key, (_, form) in LEVEL.items()]
            rows.append([name, side, *cells, *shared])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    load, side, *numbers = row
    aligned = [cell.rjust(width) for cell, width in zip(numbers, widths[2:], strict=True)]
    return "  ".join([load.rjust(widths[0]), side.ljust(widths[1]), *aligned]).rstrip()


def _cell(value: Any, form: Format) -> str:
    return "-" if value is None else form(value)
