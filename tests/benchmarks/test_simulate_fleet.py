"""Users, arrivals and the router, by events on a simulated clock."""

from __future__ import annotations

import pytest
import simpy

from redraft.benchmarks.load_plan import arrivals
from redraft.benchmarks.load_run import Pass
from redraft.benchmarks.simulate_fleet import ROUTERS, Fleet, simulate
from redraft.benchmarks.simulate_lengths import Lengths
from redraft.benchmarks.simulate_replica import Replica, Setup
from redraft.benchmarks.simulate_script import Chances, Job, Plain, jobs
from redraft.server.engine.costs import CostTable
from redraft.server.engine.types import RedraftError

TABLE = CostTable((2, 128), (0.010, 0.010), 0.0, 0.0, (1,), (0.0,), 0.0)
SETUP = Setup(slots=4, pages=40, max_model_len=1000, tree_rows=1, most_rows=128, most_nodes=0, speculation="off")


def replicas(count: int = 1, slots: int = 4) -> list[Replica]:
    return [Replica(Setup(slots, 40, 1000, 6, 128, 5), TABLE) for _ in range(count)]


def plain_jobs(*tokens: int) -> list[Job]:
    return [Job(number, 1, count, Plain()) for number, count in enumerate(tokens)]


def times(done: Pass) -> list[tuple[int, float, float]]:
    return sorted((record.number, record.sent, record.ended) for record in done.records)


def test_a_user_asks_again_once_answered() -> None:
    done = simulate([Replica(SETUP, TABLE)], "round-robin", plain_jobs(3, 2, 4), 1, None)
    assert times(done) == [
        (0, 0.0, pytest.approx(0.03)),
        (1, pytest.approx(0.03), pytest.approx(0.05)),
        (2, pytest.approx(0.05), pytest.approx(0.09)),
    ]
    assert done.complete
    assert [record.user for record in done.records] == [0, 0, 0]


def test_users_share_the_passes() -> None:
    done = simulate([Replica(SETUP, TABLE)], "round-robin", plain_jobs(5, 5, 5, 5), 4, None)
    assert [ended for _, _, ended in times(done)] == pytest.approx([0.05] * 4)


def test_who_asks_again_is_in_the_very_next_pass() -> None:
    done = simulate([Replica(SETUP, TABLE)], "round-robin", plain_jobs(2, 6, 4), 2, None)
    assert times(done)[2] == (2, pytest.approx(0.02), pytest.approx(0.06))


def test_what_arrives_during_a_pass_is_taken_in_with_the_next() -> None:
    done = simulate([Replica(SETUP, TABLE)], "round-robin", plain_jobs(4, 1, 1), None, (0.0, 0.013, 0.5))
    assert times(done) == [
        (0, 0.0, pytest.approx(0.04)),
        (1, pytest.approx(0.013), pytest.approx(0.03)),
        (2, pytest.approx(0.5), pytest.approx(0.51)),
    ]


def test_an_idle_fleet_waits_for_arrivals() -> None:
    done = simulate([Replica(SETUP, TABLE)], "least-loaded", plain_jobs(1), None, (7.0,))
    assert times(done) == [(0, 7.0, pytest.approx(7.01))]


def test_round_robin_goes_round_and_least_loaded_avoids_the_busy() -> None:
    found = {}
    for router in ROUTERS:
        clock = simpy.Environment()
        fleet = Fleet(clock, [Replica(SETUP, TABLE) for _ in range(2)], router)

        def ask(fleet: Fleet, job: Job) -> simpy.events.ProcessGenerator:
            yield fleet.clock.timeout(0.1 * job.number)
            yield from fleet.answer(job)

        clock.run(until=clock.all_of([clock.process(ask(fleet, job)) for job in plain_jobs(50, 1, 1, 1)]))
        found[router] = fleet.routed, clock.now
    # the long one keeps the first replica busy all the while
    assert found == {"round-robin": ([2, 2], pytest.approx(0.5)), "least-loaded": ([1, 3], pytest.approx(0.5))}
    with pytest.raises(ValueError, match="random"):
        Fleet(simpy.Environment(), [], "random")


def test_least_loaded_gives_a_slow_replica_less() -> None:
    slow = CostTable((2, 128), (0.050, 0.050), 0.0, 0.0, (1,), (0.0,), 0.0)
    routed = {}
    for router in ROUTERS:
        two = [Replica(SETUP, TABLE), Replica(SETUP, slow)]
        done = simulate(two, router, plain_jobs(*[10] * 60), 4, None)
        routed[router] = two[0].counts.requests
        assert sum(record.answer.tokens for record in done.records if record.answer) == 600
    assert routed["round-robin"] == 300
    assert routed["least-loaded"] > 400


def test_replicas_divide_the_work() -> None:
    ends = []
    for count in (1, 2, 4):
        asked = jobs(64, Chances((0.6, 0.3)), Lengths(30), Lengths(40), 0)
        done = simulate(replicas(count), "round-robin", asked, 16, None)
        ends.append(max(record.ended for record in done.records))
    assert ends[0] / ends[1] == pytest.approx(2, rel=0.1)
    assert ends[0] / ends[2] == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("rate", [None, 20.0])
def test_the_same_seed_gives_the_same_events(rate: float | None) -> None:
    def once(seed: int) -> Pass:
        asked = jobs(40, Chances((0.6, 0.4, 0.1)), Lengths(60, 0.5), Lengths(30, 0.5), seed)
        at = None if rate is None else arrivals(rate, 40, seed)
        return simulate(replicas(2), "least-loaded", asked, 8 if rate is None else None, at)

    assert once(5).records == once(5).records
    assert times(once(5)) != times(once(6))


def test_tokens_are_conserved_and_time_goes_forward() -> None:
    asked = jobs(50, Chances((0.8, 0.5, 0.3)), Lengths(60, 0.9), Lengths(30, 0.9), 1)
    done = simulate(replicas(3), "least-loaded", asked, None, arrivals(30.0, 50, 1))
    assert sorted(record.number for record in done.records) == list(range(50))
    for record in done.records:
        assert record.answer is not None
        assert record.answer.tokens == asked[record.number].output_tokens
        assert sum(event.tokens for event in record.answer.events) == record.answer.tokens
        assert sum(n * count for n, count in enumerate(record.answer.rounds or (), start=1)) == record.answer.tokens
        at = [event.at for event in record.answer.events]
        assert record.sent < at[0]
        assert at == sorted(set(at))
        assert at[-1] == record.ended


def test_a_request_that_can_never_run_is_an_error() -> None:
    with pytest.raises(RedraftError, match="fits"):
        simulate([Replica(SETUP, TABLE)], "round-robin", [Job(0, 5000, 1, Plain())], 1, None)
