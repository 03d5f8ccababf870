"""What tokens cost, as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redraft.benchmarks.report import Figures


def table(report: Mapping[str, Any]) -> str:
    """A line a level in aligned columns, then what the figures rest on."""
    currency, levels = report["currency"], report["levels"]
    load = "requests/s" if any("rate" in level for level in levels) else "users"
    unit = f"{currency}/M tokens"
    rows: list[tuple[str, ...]] = [
        (load, f"plain {unit}", f"speculative {unit}", "saved", "plain kWh/M", "speculative kWh/M", "pays after tokens")
    ]
    for level in levels:
        name = f"{level.get('rate', level.get('concurrency')):g}"
        money = [_of(level[side], "money_per_million_tokens") for side in ("plain", "speculative")]
        energy = [_of(level[side], "kwh_per_million_tokens") for side in ("plain", "speculative")]
        saved = "-" if level["saved"] is None else f"{100 * level['saved']:.1f} %"
        rows.append((name, *money, saved, *energy, _pays(level)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*lines, *_notes(report)])


def _of(side: Figures | None, name: str) -> str:
    """Four significant digits: prices differ by orders of magnitude."""
    value = None if side is None else side[name]
    return "-" if value is None else f"{value:.4g}" if value < 1000 else f"{value:,.0f}"


def _pays(level: Figures) -> str:
    if level["pays"] is None:
        return "-"
    if not level["pays"]:
        return "never"
    return f"{level['break_even_tokens']:,.0f} ({level['break_even_hours']:,.1f} h)"


def _notes(report: Mapping[str, Any]) -> list[str]:
    currency, training = report["currency"], report["training"]
    machines = f" and replica, of which there are {report['replicas']}" if report["replicas"] > 1 else ""
    lines = [f"at {report['price_per_hour']:g} {currency} an hour{machines}"]
    if training["seconds"] is None:
        lines.append(f"training: unknown, {training['source']}")
    else:
        spent = f"{training['seconds'] / 3600:.2f} h at {training['price_per_hour']:g} {currency}"
        cost = f", {spent} = {training['cost']:.4g} {currency}" if training["seconds"] else ""
        lines.append(f"training: {training['draft']}{cost} ({training['source']})")
    if "unknown" in report["power"]:
        lines.append("energy: unknown where there is none; no power was measured: give --watts")
    else:
        lines.append(f"energy: by power as {report['power']}")
    if report["source"]["complete"] is False:
        lines.append("the measurement was stopped before its end")
    return lines
