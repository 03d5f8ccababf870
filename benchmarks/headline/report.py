"""The comparison for people and for machines: tables, what may be concluded from them, a picture, one JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redraft.benchmarks.headline.bootstrap import DRAWS, SEED, SHARE
from redraft.benchmarks.headline.findings import (
    REFERENCE,
    Acceptance,
    Key,
    acceptances,
    operations,
    plateau,
    starts,
)
from redraft.benchmarks.headline.plot import draw
from redraft.benchmarks.headline.runs import Cost, Trained, read_runs
from redraft.benchmarks.headline.sets import read_sets, set_rows
from redraft.benchmarks.headline.table import Rows, aligned, cost_rows, difference_rows, markdown, tau_rows
from redraft.benchmarks.stamp import stamp
from redraft.server.engine.progress import say
from redraft.server.engine.types import RedraftError

NAME = "headline"
LEGEND = (
    f"τ: tokens of all prompts over rounds of all prompts. Intervals: {SHARE:.0%}, {DRAWS} draws of prompts in pairs; "
    "* where they leave out 0. They tell of other prompts, not of another seed of training. Seconds are each process's "
    "own: processes that share a GPU slow one another."
)


def report(folder: Path, results: Path, chosen: Sequence[str], command: Sequence[str]) -> None:
    """Print tables and findings; write ``headline.json``, ``.md`` and ``.png`` into ``results``.

    Raises ``RedraftError`` as ``read_runs`` does, and where nothing can be written.
    """
    runs, left_out = read_runs(folder, chosen)
    found, notes = acceptances(runs), [*conclusions(runs), *(f"{one}." for one in left_out)]
    sets = read_sets(folder)
    every = cost_rows(runs), tau_rows(found), difference_rows(found), set_rows(sets)
    tables = [rows for rows in every if len(rows) > 1]
    _write(compose(runs, found, notes, command) | {"sets": sets}, runs, tables, results)
    print("\n\n".join([*(aligned(rows) for rows in tables), *notes, LEGEND]))
    say(f"{NAME}.json, {NAME}.md and {NAME}.png are in {results}")


def conclusions(runs: Sequence[Trained]) -> list[str]:
    """What a reader of the tables must know, the gravest first."""
    return [*operations(runs)[1], *starts(runs), plateau(runs)[1]]


def compose(
    runs: Sequence[Trained],
    found: Mapping[str, Mapping[Key, Acceptance]],
    notes: Sequence[str],
    command: Sequence[str],
) -> dict[str, Any]:
    """All of it, as JSON has it."""
    return {
        "benchmark": NAME,
        **stamp(command),
        "equal_operations": operations(runs)[0],
        "plateau": plateau(runs)[0],
        "notes": list(notes),
        "bootstrap": {"reference": REFERENCE, "draws": DRAWS, "seed": SEED, "share": SHARE},
        "arms": {run.name: _arm(run, found[run.name]) for run in runs},
    }


def _arm(run: Trained, found: Mapping[Key, Acceptance]) -> dict[str, Any]:
    card = run.card
    return {
        **{name: card.get(name) for name in ("method", "target_sha", "texts", "steps", "command", "torch", "settings")},
        "planned_flops": run.planned,
        "flops": card["training_flops"],
        "spent": _cost(run.spent),
        "before": _cost(run.before),
        "curve": {
            "columns": ["step", "flops", "labels", "seconds", "tau"],
            "points": [[p.step, *_cost(p.cost).values(), round(p.tau, 5)] for p in run.points],
        },
        "evaluated": dict(run.evaluated),
        "results": [{name: getattr(one, name) for name in one.__slots__} for one in run.results],
        "tau": [
            {
                **dict(zip(("set", "temperature", "shape"), key, strict=True)),
                "tau": round(one.tau, 5),
                "difference": one.against
                and [round(value, 5) for value in (one.against.value, one.against.low, one.against.high)],
            }
            for key, one in found.items()
        ],
    }


def _cost(cost: Cost) -> dict[str, float]:
    return {"flops": int(cost.flops), "labels": cost.labels, "seconds": cost.seconds}


def _write(made: Mapping[str, Any], runs: Sequence[Trained], tables: Sequence[Rows], results: Path) -> None:
    title, notes = "# EAGLE-3, DFlash by SFT and Draft-OPD", made["notes"]
    paragraphs = [title, *notes, *(markdown(rows) for rows in tables), LEGEND]
    try:
        results.mkdir(parents=True, exist_ok=True)
        (results / f"{NAME}.json").write_text(json.dumps(made, ensure_ascii=False, separators=(",", ":")) + "\n")
        (results / f"{NAME}.md").write_text("\n\n".join([*paragraphs, f"![curves]({NAME}.png)"]) + "\n")
        draw(runs, made["equal_operations"], results / f"{NAME}.png")
    except OSError as error:
        raise RedraftError(f"cannot write {error.filename} ({error.strerror}); choose another --results") from error
