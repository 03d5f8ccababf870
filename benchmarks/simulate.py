"""``redraft bench simulate``: a discrete-event model of the server, driven by costs and acceptance that were measured.

What decides (scheduler, pacer) is the engine's own code; only the device is replaced, by a clock (simulate_replica.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from redraft.benchmarks.load_plan import Level
from redraft.benchmarks.report import Figures
from redraft.benchmarks.simulate_lengths import Lengths
from redraft.benchmarks.simulate_levels import World, simulate_level
from redraft.benchmarks.simulate_replica import Setup
from redraft.benchmarks.simulate_script import Chances, Job, jobs
from redraft.benchmarks.simulate_table import table
from redraft.benchmarks.simulate_trace import Trace
from redraft.benchmarks.stamp import stamp
from redraft.server.engine.config import PAGE
from redraft.server.engine.costs import CostTable, read_table
from redraft.server.engine.pace import LEAST_PREFILL
from redraft.server.engine.progress import progress
from redraft.server.engine.types import RedraftError
from redraft.server.limits import MAX_DRAFTED

NOTICEABLE = 0.05
"""Share of a simulated step from which on it is said what the policy itself takes."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a simulation is driven by."""

    table: CostTable
    source: Trace | Chances
    facts: dict[str, Any]
    """Where costs and acceptance are from, for the JSON."""
    lag: int = 0
    """Of the engine that was measured."""
    gpu: str | None = None


@dataclass(frozen=True, slots=True)
class Study:
    """What is asked of the simulation; None takes what the requests or the costs suggest."""

    levels: Sequence[Level]
    prompt_tokens: Lengths | None = None
    output_tokens: Lengths | None = None
    seed: int = 0
    replicas: int = 1
    router: str = "round-robin"
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    max_nodes: int | None = None
    pages: int | None = None
    speculation: str = "auto"
    lag: int = 0
    host_seconds: float = 0.0


OPEN_SEQS = 8
"""Requests decoded at once in an open loop where nothing else is asked for, as the server has it."""


def setup_for(study: Study, inputs: Inputs, asked: Sequence[Job]) -> Setup:
    """The replicas of ``study``, for all its levels; ``RedraftError`` for sizes that do not go together."""
    users = [level.concurrency or 0 for level in study.levels]
    slots = study.max_num_seqs or -(-max(users) // study.replicas) or OPEN_SEQS
    width = inputs.source.width
    nodes = width if study.max_nodes is None else min(study.max_nodes, width)
    longest = max(job.prompt_tokens + job.output_tokens for job in asked)
    length = study.max_model_len or longest
    least = slots + LEAST_PREFILL
    rows = study.max_num_batched_tokens or max(inputs.table.rows[-1], least)
    if rows < least:
        raise RedraftError(f"--max-num-batched-tokens must be at least {least} for {slots} requests, not {rows}")
    pages = study.pages or slots * -(-(length + width + 1) // PAGE)
    return Setup(
        slots, pages, length, width + 1, rows, nodes, study.speculation, lag=study.lag, host_seconds=study.host_seconds
    )


def run(study: Study, inputs: Inputs, json_file: Path | None, command: Sequence[str], more: Figures) -> None:
    """Simulate all levels, print the table and, last, one line of JSON; ``more`` goes into it.

    Raises ``RedraftError`` for requests that can never run.
    """
    asked = {
        level: jobs(level.requests, inputs.source, study.prompt_tokens, study.output_tokens, study.seed)
        for level in study.levels
    }
    setup = setup_for(study, inputs, [job for some in asked.values() for job in some])
    world = World(setup, inputs.table, study.replicas, study.router)
    rows, policy = list[Figures](), list[Figures]()
    for level in study.levels:
        with progress(f"Simulating {level.name}, {level.requests} requests", 2 * level.requests) as advance:
            row, took = simulate_level(world, level, asked[level], study.seed, advance)
        rows.append(row)
        policy.append(took)
    report = {
        "benchmark": "simulate",
        "complete": True,
        **stamp(command, inputs.gpu),
        "inputs": inputs.facts,
        "costs": asdict(inputs.table),
        "settings": asdict(setup) | {"replicas": study.replicas, "router": study.router, "seed": study.seed},
        **more,
        "levels": rows,
        "policy_seconds_per_step": policy,
    }
    print(table(rows))
    for row, took in zip(rows, policy, strict=True):
        for note in notes(row, took, study.replicas):
            print(note)
    line = json.dumps(report, ensure_ascii=False)
    if json_file is not None:
        json_file.write_text(line + "\n")
    print(line, flush=True)


def notes(row: Figures, policy: Figures, replicas: int) -> list[str]:
    """What is to be said where the real policy code would hold a real engine up."""
    found = []
    load = f"concurrency {row['concurrency']}" if "concurrency" in row else f"{row['rate']:g} requests/s"
    for side in ("plain", "speculative"):
        step = row[side]["seconds"] * row[side]["busy_share"] * replicas / row[side]["steps"]
        if policy[side] > NOTICEABLE * step:
            found.append(
                f"{load}, {side}: scheduler and pacer took {1e3 * policy[side]:.2f} ms a step here, beside simulated "
                f"passes of {1e3 * step:.2f} ms; that is not in the figures (--host-seconds puts it there)"
            )
    return found


def prepare(*files: Path | None) -> None:
    """Fail before an hour of simulating, not after it."""
    for file in files:
        try:
            if file is not None:
                file.open("a").close()
        except OSError as error:
            raise RedraftError(f"cannot write {file} ({error.strerror}); choose another place") from error


def read_chances(text: str) -> Chances:
    """``0.7,0.5,0.3`` -> hit rates by rank; ``RedraftError`` unless they lie in 0 ... 1 and do not rise."""
    try:
        rates = [float(item) for item in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 <= rate <= 1 for rate in rates) or any(a < b for a, b in pairwise(rates)):
        raise RedraftError(f"--rates {text[:80]!r} must be shares from 0 to 1 that do not rise, such as 0.7,0.5,0.3")
    if len(rates) > MAX_DRAFTED:
        raise RedraftError(f"--rates names {len(rates)} drafted tokens; {MAX_DRAFTED} is the most there can be")
    return Chances(rates)


def read_costs(path: Path) -> CostTable:
    """A table of costs from a file: one as the engine keeps it, or the JSON of a simulation.

    Raises ``RedraftError`` that names the file.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return read_table(raw["costs"] if isinstance(raw, dict) and "costs" in raw else raw)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RedraftError(f"cannot read {path} ({reason}); --costs takes a table of costs") from error
    except ValueError as error:
        raise RedraftError(f"{path}: {error}") from error
