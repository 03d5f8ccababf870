"""The report's tables, aligned for a terminal or in markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from redraft.benchmarks.headline.findings import REFERENCE, Acceptance, Key, tflop
from redraft.benchmarks.headline.runs import Trained

Rows = list[list[str]]
UNIQUE = "unique_answer_tokens"
"""In the card: tokens of answers that were trained on, each counted once."""


def cost_rows(runs: Sequence[Trained]) -> Rows:
    """A line an arm: what it spent."""
    unique = any(UNIQUE in run.card for run in runs)
    head = ["arm", "steps", "TFLOP", "planned", "of plan", "with trunk", "labels", "seconds", "with trunk"]
    rows = [[*head, *(["unique tokens"] if unique else []), "dev τ"]]
    for run in runs:
        spent, total, planned = run.spent, run.total, run.planned
        rows.append(
            [
                run.name,
                str(run.card.get("steps", "-")),
                tflop(spent.flops),
                "-" if planned is None else tflop(planned),
                "-" if not planned else f"{spent.flops / planned:.0%}",
                tflop(total.flops),
                f"{spent.labels:,}",
                f"{spent.seconds:.0f}",
                f"{total.seconds:.0f}",
                *([f"{run.card[UNIQUE]:,}" if UNIQUE in run.card else "-"] if unique else []),
                f"{run.points[-1].tau:.3f}" if run.points else "-",
            ]
        )
    return rows


def tau_rows(found: Mapping[str, Mapping[Key, Acceptance]]) -> Rows:
    """A line an arm and set: τ of every temperature and shape; arms without an evaluation have none."""
    return _by_set(found, "arm", lambda one: f"{one.tau:.3f}")


def difference_rows(found: Mapping[str, Mapping[Key, Acceptance]]) -> Rows:
    """Likewise, differences to ``REFERENCE`` with their intervals; a star where the interval leaves out 0."""
    told = {name: {key: one for key, one in by.items() if one.against} for name, by in found.items()}
    return _by_set(told, f"less {REFERENCE}", _against)


def _against(one: Acceptance) -> str:
    assert one.against is not None
    d = one.against
    return f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]{'*' if d.clear else ''}"


def _by_set(found: Mapping[str, Mapping[Key, Acceptance]], corner: str, cell: Callable[[Acceptance], str]) -> Rows:
    keys = [key for by in found.values() for key in by]
    # sets as the evaluation has them, the pooled one last
    sets = list(dict.fromkeys(name for name, _, _ in keys))
    columns = sorted({(temperature, shape) for _, temperature, shape in keys})
    rows = [[corner, "set", *(f"{shape} T={temperature:g}" for temperature, shape in columns)]]
    for arm, by in found.items():
        for name in sets:
            cells = [cell(by[name, *column]) if (name, *column) in by else "-" for column in columns]
            if any(one != "-" for one in cells):
                rows.append([arm, name, *cells])
    return rows


def aligned(rows: Rows) -> str:
    """For a terminal: words to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = _words(rows)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def markdown(rows: Rows) -> str:
    """The same as a table of markdown."""
    left = _words(rows)
    rule = ["---" if column < left else "---:" for column in range(len(rows[0]))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


def _words(rows: Rows) -> int:
    """How many columns are names."""
    return 2 if rows[0][1] == "set" else 1
