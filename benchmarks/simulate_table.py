"""Simulated levels as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from redraft.benchmarks.load_table import SIDE, Format
from redraft.benchmarks.report import Figures

OWN: dict[str, tuple[str, Format]] = {
    "requests_per_round": ("decoding", "{:.1f}".format),
    "rows_per_step": ("rows", "{:.1f}".format),
    "steps": ("steps", str),
    "preemptions": ("preempted", str),
}
COLUMNS = {name: column for name, column in SIDE.items() if name != "errors"} | OWN


def table(levels: Sequence[Figures]) -> str:
    """Two lines a level, plain and speculative, in aligned columns."""
    load = "requests/s" if any("rate" in level for level in levels) else "users"
    rows = [[load, "decoding", *(title for title, _ in COLUMNS.values()), "speed-up"]]
    for level in levels:
        for side in ("plain", "speculative"):
            cells = [_cell(level[side][name], form) for name, (_, form) in COLUMNS.items()]
            faster = _cell(level["speedup"], "{:.2f}".format) if side == "speculative" else ""
            rows.append([f"{level.get('rate', level.get('concurrency')):g}", side, *cells, faster])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for name, side, *cells in rows:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[2:], strict=True)]
        lines.append("  ".join([name.rjust(widths[0]), side.ljust(widths[1]), *numbers]).rstrip())
    return "\n".join(lines)


def _cell(value: float | int | None, form: Format) -> str:
    return "-" if value is None else form(value)
