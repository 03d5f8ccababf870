"""One simulated engine: its clock by hand, its accounts, and its decisions under pressure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from redraft.benchmarks.simulate_lengths import Lengths
from redraft.benchmarks.simulate_replica import Replica, Setup
from redraft.benchmarks.simulate_script import Chances, Job, Plain, jobs
from redraft.server.engine.costs import CostTable
from redraft.server.engine.types import RedraftError

TABLE = CostTable((2, 128), (0.010, 0.010), 0.0, 0.0, (1,), (0.0,), 0.001)
SETUP = Setup(slots=4, pages=40, max_model_len=1000, tree_rows=6, most_rows=128, most_nodes=5)
PLAIN = replace(SETUP, most_nodes=0, tree_rows=1, speculation="off")


def run(replica: Replica, now: float = 0.0) -> tuple[float, list[tuple[float, str, int]]]:
    """When the last step ended, and when how many tokens of whom came."""
    events = []
    while replica.busy:
        now, outputs = replica.step(now)
        events += [(now, output.request_id, len(output.tokens)) for output in outputs]
    return now, events


def test_the_clock_by_hand() -> None:
    replica = Replica(PLAIN, TABLE)
    replica.submit(Job(0, 129, 3, Plain()))
    # 128 tokens of prefill in one pass, which samples nothing; then three rounds
    assert replica.step(0.0) == (pytest.approx(0.010), [])
    _, events = run(replica, 0.010)
    assert [at for at, _, _ in events] == pytest.approx([0.010 + 0.011 * n for n in (1, 2, 3)])
    assert replica.counts.rounds == 3
    assert replica.counts.prefill_only == 1
    assert replica.counts.busy == pytest.approx(0.010 + 3 * 0.011)


def test_what_the_host_does_is_added_without_a_lag_and_hidden_with_one() -> None:
    ends = {}
    for lag in (0, 1):
        replica = Replica(replace(PLAIN, lag=lag, host_seconds=0.004), TABLE)
        replica.submit(Job(0, 1, 100, Plain()))
        ends[lag], events = run(replica)
        assert sum(tokens for _, _, tokens in events) == 100
    assert ends[0] == pytest.approx(100 * (0.011 + 0.004))
    # of the first step alone the host's part is seen; a round more is launched before the end is known
    assert ends[1] == pytest.approx(0.004 + 101 * 0.011, abs=0.011)


def test_a_host_slower_than_its_device_is_what_counts() -> None:
    replica = Replica(replace(PLAIN, lag=1, host_seconds=0.020), TABLE)
    replica.submit(Job(0, 1, 100, Plain()))
    end, _ = run(replica)
    assert end == pytest.approx(100 * 0.020, rel=0.03)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("pages", [40, 12])
@pytest.mark.parametrize("speculation", ["auto", "off", "3"])
def test_every_token_is_said_once(lag: int, pages: int, speculation: str) -> None:
    replica = Replica(replace(SETUP, lag=lag, pages=pages, speculation=speculation), TABLE)
    asked = jobs(12, Chances((0.7, 0.5, 0.2)), Lengths(200, 0.8), Lengths(150, 0.8), 3)
    asked = tuple(replace(job, prompt_tokens=min(job.prompt_tokens, 600)) for job in asked)
    asked = tuple(replace(job, output_tokens=min(job.output_tokens, 300)) for job in asked)
    for job in asked:
        replica.submit(job)
    _, events = run(replica)
    said = dict.fromkeys((str(job.number) for job in asked), 0)
    for _, name, tokens in events:
        said[name] += tokens
    assert said == {str(job.number): job.output_tokens for job in asked}
    assert replica.scheduler.pool.used == 0
    assert (replica.scheduler.preemptions > 0) == (pages == 12), "the small one must have been short of pages"
    assert (replica.counts.nodes > 0) == (speculation != "off")


def test_a_good_draft_that_costs_nothing_is_used() -> None:
    ends = {}
    for setup in (PLAIN, SETUP):
        replica = Replica(setup, TABLE)
        for job in jobs(4, Chances((0.9, 0.8, 0.7)), Lengths(20), Lengths(200), 0):
            replica.submit(job)
        ends[setup.most_nodes], _ = run(replica)
    assert ends[0] / ends[5] > 2.5


def test_what_can_never_run_is_refused() -> None:
    with pytest.raises(RedraftError, match="fits"):
        Replica(SETUP, TABLE).submit(Job(0, 1000, 1, Plain()))
