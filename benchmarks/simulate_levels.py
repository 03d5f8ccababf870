"""Both sides of a simulated level, plain and speculative, and their figures.  Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from redraft.benchmarks.load_figures import pass_figures
from redraft.benchmarks.load_plan import Level, arrivals
from redraft.benchmarks.load_run import Pass
from redraft.benchmarks.report import Figures
from redraft.benchmarks.simulate_fleet import simulate
from redraft.benchmarks.simulate_replica import Replica, Setup
from redraft.benchmarks.simulate_script import Job
from redraft.server.engine.costs import CostTable

SIDES = ("plain", "speculative")


@dataclass(frozen=True, slots=True)
class World:
    """What is simulated, whatever the load."""

    setup: Setup
    table: CostTable
    replicas: int = 1
    router: str = "round-robin"


def plain(setup: Setup) -> Setup:
    """The same engine, which drafts nothing."""
    return replace(setup, most_nodes=0, tree_rows=1, speculation="off")


def simulate_level(
    world: World, load: Level, jobs: Sequence[Job], seed: int, advance: Callable[[int], None] = lambda _: None
) -> tuple[Figures, Figures]:
    """A row of ``levels`` as ``bench load`` has it, and by side what the policy took, in real seconds a step.

    ``seed`` is that of the arrivals.  Raises ``RedraftError`` for a request that no replica can ever run.
    """
    times = arrivals(load.rate, len(jobs), seed) if load.rate is not None else None
    sides, policy = Figures(), Figures()
    for side in SIDES:
        setup = plain(world.setup) if side == "plain" else world.setup
        replicas = [Replica(setup, world.table) for _ in range(world.replicas)]
        done = simulate(replicas, world.router, jobs, load.concurrency, times, advance)
        sides[side] = side_figures(done, replicas)
        policy[side] = sum(one.counts.policy for one in replicas) / sides[side]["steps"]
    name = {"concurrency": load.concurrency} if load.rate is None else {"rate": load.rate}
    faster = sides["speculative"]["tokens_per_second"] / sides["plain"]["tokens_per_second"]
    row = {**name, "requests": load.requests, **sides, "speedup": faster if load.rate is None else None}
    return row, name | policy


def side_figures(done: Pass, replicas: Sequence[Replica]) -> Figures:
    """One side: what ``bench load`` would measure, then what the replicas did, all of them together."""
    found = pass_figures(done)
    del found["complete"]
    counts = [one.counts for one in replicas]
    rounds, only = sum(one.rounds for one in counts), sum(one.prefill_only for one in counts)
    return found | {
        "steps": rounds + only,
        "rounds": rounds,
        "drafting_rounds": sum(one.drafting for one in counts),
        "prefill_steps": only,
        "requests_per_round": sum(one.requests for one in counts) / rounds,
        "nodes_per_step": sum(one.nodes for one in counts) / rounds,
        "rows_per_step": sum(one.rows for one in counts) / (rounds + only),
        "busy_share": sum(one.busy for one in counts) / (found["seconds"] * len(counts)),
        "preemptions": sum(one.scheduler.preemptions for one in replicas),
    }
