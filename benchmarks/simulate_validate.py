"""Holds a simulation against the real engine: same requests, same policy, costs as measured just before.

What differs is taken apart: rounds and prefill by the real engine's own steps against the table, and what a step takes
beside its pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from redraft.benchmarks.load_figures import pass_figures
from redraft.benchmarks.load_run import Pass
from redraft.benchmarks.report import Figures
from redraft.benchmarks.simulate_device import seconds
from redraft.benchmarks.simulate_fleet import simulate
from redraft.benchmarks.simulate_levels import SIDES, side_figures
from redraft.benchmarks.simulate_real import Parts, Taken, run_real
from redraft.benchmarks.simulate_record import costs, median_table, setup_of
from redraft.benchmarks.simulate_replica import Replica
from redraft.benchmarks.simulate_script import jobs
from redraft.benchmarks.simulate_trace import Trace
from redraft.drafts.none import NoDrafter
from redraft.server.engine.costs import CostTable
from redraft.server.engine.engine import Engine
from redraft.server.engine.types import SamplingParams


def validate(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    trace: Trace,
    users: int,
    given: CostTable | None = None,
    host_seconds: float = 0.0,
) -> list[Figures]:
    """Both sides of a closed loop of ``users`` that asks all ``prompts`` once, real and simulated.

    Costs are ``given``, or measured before the run and after it, since machines drift.  ``trace`` holds the answers to
    the same prompts.
    """
    before = [given or costs(engine)]
    runs = {side: _run(engine, side, prompts, params, users, before[0]) for side in SIDES}
    table = given or median_table([*before, costs(engine)])
    return [
        {
            "concurrency": users,
            "side": side,
            **_compared(pass_figures(done), _simulated(engine, side, trace, users, table, host_seconds)),
            "parts": _parts(parts, table),
        }
        for side, (done, parts) in runs.items()
    ]


def _run(
    engine: Engine,
    side: str,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    users: int,
    table: CostTable,
) -> tuple[Pass, Parts]:
    drafter = engine.drafter
    try:
        return run_real(engine, NoDrafter() if side == "plain" else drafter, prompts, params, users, table)
    finally:
        if not engine.busy:
            engine.drafter = drafter


def _simulated(engine: Engine, side: str, trace: Trace, users: int, table: CostTable, host_seconds: float) -> Figures:
    setup = replace(setup_of(engine), host_seconds=host_seconds)
    if side == "plain":
        setup = replace(setup, speculation="off")
    replica = Replica(setup, table)
    asked = jobs(len(trace.texts), trace, None, None, 0)
    return side_figures(simulate([replica], "round-robin", asked, users, None), [replica])


def _compared(real: Figures, simulated: Figures) -> Figures:
    ratio = simulated["tokens_per_second"] / real["tokens_per_second"]
    return {"ratio": ratio, "real": real, "simulated": simulated}


def _parts(parts: Parts, table: CostTable) -> Figures:
    """Where the real seconds went, and what the table says of the same steps."""
    rounds = {kind: _share(taken, table) for kind, taken in sorted(parts.rounds.items())}
    prefill = _share(parts.prefill, table)
    steps = sum(share["count"] for share in rounds.values())
    return {
        "rounds": steps,
        "rounds_seconds": sum(share["seconds"] for share in rounds.values()),
        "rounds_by_table": sum(share["by_table"] for share in rounds.values()),
        "prefill_steps": prefill["count"],
        "prefill_seconds": prefill["seconds"],
        "prefill_by_table": prefill["by_table"],
        "outside_seconds_per_round": parts.outside / max(steps, 1),
        "kinds": [
            {"rows": rows, "drafting": drafting, "beside_prefill": beside, **share}
            for (rows, drafting, beside), share in rounds.items()
        ],
    }


def _share(taken: Sequence[Taken], table: CostTable) -> Figures:
    return {
        "count": len(taken),
        "seconds": sum(one.seconds for one in taken),
        "by_table": sum(seconds(table, one.work) for one in taken),
    }


def report(rows: Sequence[Figures]) -> str:
    """A line each way and load, then where the seconds went."""
    lines = ["users  decoding     real tok/s  simulated  ratio  rounds: s, by table  prefill: s, by table  beside: ms"]
    for row in rows:
        parts: dict[str, Any] = row["parts"]
        lines.append(
            f"{row['concurrency']:5}  {row['side']:11}  {row['real']['tokens_per_second']:10.1f}"
            f"  {row['simulated']['tokens_per_second']:9.1f}  {row['ratio']:5.2f}"
            f"  {parts['rounds_seconds']:9.2f}  {parts['rounds_by_table']:8.2f}"
            f"  {parts['prefill_seconds']:10.2f}  {parts['prefill_by_table']:8.2f}"
            f"  {1e3 * parts['outside_seconds_per_round']:10.2f}"
        )
    return "\n".join(lines)
