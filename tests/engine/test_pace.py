"""The pacer in the loop: made-up machines and drafts, and what comes out in tokens per second."""

from __future__ import annotations

import random

import pytest

from redraft.server.engine.acceptance import Proposal
from redraft.server.engine.costs import Costs, CostTable
from redraft.server.engine.pace import LEAST_PREFILL, PROBING, Pacer
from redraft.server.engine.prefix import PageKeys
from redraft.server.engine.rows_plan import RECORDED, pass_sizes, recorded_rows, row_bucket
from redraft.server.engine.sequence import Sequence
from redraft.server.engine.types import Request, SamplingParams

WIDTH = 5
CPU = CostTable(
    rows=(2, 6, 8, 16, 32, 64, 128),
    passes=(0.014, 0.014, 0.016, 0.021, 0.033, 0.060, 0.112),
    per_request=0.0,
    per_row=0.0,
    requests=(1, 16),
    drafts=(0.003, 0.013),
    round=0.001,
)


def sequence(name: str, tokens: int = 10, max_nodes: int | None = None) -> Sequence:
    request = Request(name, tuple(range(tokens)), SamplingParams(max_tokens=10**6), max_nodes=max_nodes)
    made = Sequence(request, 10**6, PageKeys("", ""), list(range(tokens)), slot=0)
    made.computed = tokens - 1
    return made


def pacer(speculation: str = "auto", table: CostTable | None = CPU, most_rows: int = 128) -> Pacer:
    return Pacer(most_rows, WIDTH, speculation, None if table is None else Costs(table))


class Machine:
    """Runs rounds by a true cost table and true chances per depth of a chain; the pacer sees what an engine's would."""

    def __init__(self, pacer: Pacer, true: CostTable = CPU, seed: int = 0) -> None:
        self.pacer, self.true, self.source = pacer, true, random.Random(seed)
        self.seconds = self.tokens = self.drafting = self.tries = 0.0

    def run(self, sequences: list[Sequence], chance: float | dict[str, float], rounds: int) -> list[int]:
        nodes = []
        for _ in range(rounds):
            pace = self.pacer.step(sequences, [])
            rows = row_bucket(len(sequences) + pace.nodes)
            work = self.pacer.work(sequences, rows, pace.drafting)
            took = Costs(self.true).seconds(work) * self.source.uniform(0.95, 1.05)
            self.pacer.took(work, took)
            self.seconds += took
            share = pace.nodes // len(sequences)
            verified = accepted = 0
            for one in sequences:
                name = one.request.request_id
                p = chance[name] if isinstance(chance, dict) else chance
                length = next((n for n in range(WIDTH) if self.source.random() > p), WIDTH)
                given = min(share, self.pacer.allowed(one))
                got = min(length, given)
                verified, accepted = verified + given, accepted + got
                self.tokens += 1 + got
                if pace.drafting:
                    committed = [1] * got + [1 if length > got else 0]
                    score = tuple(0.7**depth for depth in range(WIDTH + 1))
                    self.pacer.proposed(name, Proposal((9, *[1] * WIDTH), (0, *range(WIDTH)), score, committed, given))
            if pace.drafting:
                self.pacer.gained(sequences, verified, accepted)
                self.drafting += took
                self.tries += took if pace.nodes == 0 else 0
            nodes.append(pace.nodes)
        return nodes

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def plain_rate(requests: int, table: CostTable = CPU) -> float:
    rows = row_bucket(requests)
    return requests / (table.forward(rows) + table.round)


@pytest.mark.parametrize("requests", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("chance", [0.0, 0.05, 0.3, 0.6, 0.9])
def test_never_slower_than_plain_and_faster_where_drafts_hit(requests: int, chance: float) -> None:
    machine = Machine(pacer(), seed=requests)
    machine.run([sequence(str(n)) for n in range(requests)], chance, 600)
    assert machine.rate > 0.98 * plain_rate(requests)
    if chance >= 0.9:
        assert machine.rate > {1: 3.0, 2: 2.3, 4: 1.7, 8: 1.35, 16: 0.98, 32: 0.98}[requests] * plain_rate(requests)


def test_a_bad_stretch_ends_drafting_and_a_good_one_brings_it_back() -> None:
    machine, one = Machine(pacer()), [sequence("x")]
    assert machine.run(one, 0.8, 60)[-1] > 0
    assert max(machine.run(one, 0.0, 150)[-50:]) <= 4, "what padding leaves free may be tried"
    assert machine.pacer.acceptance.rates("x")[0] < 0.2
    back = machine.run(one, 0.8, 1500)
    assert sum(nodes > 0 for nodes in back[-20:]) >= 19


def test_trying_takes_half_a_percent_of_the_time_at_most() -> None:
    machine, requests = Machine(pacer()), [sequence(str(n)) for n in range(8)]
    machine.run(requests, 0.0, 300)
    before, plain = machine.seconds, 0
    machine.drafting = 0.0
    rounds = machine.run(requests, 0.0, 2000)
    plain = sum(nodes == 0 for nodes in rounds)
    table_draft = CPU.draft(8)
    tried = machine.drafting / (CPU.forward(8) + table_draft + CPU.round)
    assert 0 < tried * table_draft <= 1.15 * PROBING * (machine.seconds - before)
    assert plain == len(rounds), "eight rows fill the pass: a try verifies nothing"


def test_a_machine_whose_table_is_wrong_is_found_out() -> None:
    """Measured when idle: drafting looked free; in truth it costs as much as a pass."""
    lying = CostTable(CPU.rows, CPU.passes, 0.0, 0.0, (1,), (0.0001,), 0.001)
    true = CostTable(CPU.rows, CPU.passes, 0.0, 0.0, (1,), (0.020,), 0.001)
    machine = Machine(pacer(table=lying), true)
    machine.run([sequence("x")], 0.35, 400)
    machine.seconds = machine.tokens = 0.0
    machine.run([sequence("x")], 0.35, 1500)
    assert machine.rate > 0.97 * plain_rate(1)


def test_requests_that_switched_it_off_get_none() -> None:
    machine = Machine(pacer())
    assert set(machine.run([sequence("x", max_nodes=0)], 0.9, 30)) == {0}
    assert machine.drafting == 0
    assert max(machine.run([sequence("y", max_nodes=2)], 0.9, 30)) == 2


def test_fixed_and_off_do_as_they_say() -> None:
    assert set(Machine(pacer("3")).run([sequence("x"), sequence("y", max_nodes=1)], 0.0, 20)) == {4}
    assert set(Machine(pacer("off")).run([sequence("x")], 0.9, 20)) == {0}
    assert set(Machine(pacer(table=None)).run([sequence("x"), sequence("y")], 0.0, 20)) == {2 * WIDTH}


def waiting(tokens: int) -> Sequence:
    made = sequence("w", tokens)
    made.computed = 0
    return made


def test_alone_prefill_takes_the_whole_pass() -> None:
    assert pacer().step([], [waiting(1000)]).prefill == 128
    assert pacer().step([], [waiting(11), waiting(6)]).prefill == 15


@pytest.mark.parametrize("speculation", ["auto", "off", "3"])
def test_beside_streams_prefill_makes_steps_at_most_twice_as_long(speculation: str) -> None:
    for requests in (1, 4, 16):
        paced = pacer(speculation)
        streams = [sequence(str(n)) for n in range(requests)]
        alone = paced.step(streams, [])
        pace = paced.step(streams, [waiting(4000)])
        assert pace.prefill >= LEAST_PREFILL
        costs = Costs(CPU)
        before = costs.seconds(paced.work(streams, row_bucket(requests + alone.nodes), alone.drafting))
        rows = row_bucket(requests + pace.nodes + pace.prefill)
        assert costs.seconds(paced.work(streams, rows, pace.drafting, pace.prefill)) <= 2 * before


GPU = CostTable(
    rows=(4, 16, 64, 128, 256, 512),
    passes=(0.0010, 0.0010, 0.0011, 0.0012, 0.0018, 0.0033),
    per_request=0.0,
    per_row=0.0,
    requests=(1, 16),
    drafts=(0.0002, 0.0003),
)


@pytest.mark.parametrize("speculation", ["auto", "3"])
@pytest.mark.parametrize("requests", [1, 4, 16])
def test_where_passes_are_recorded_prefill_fills_their_sizes(speculation: str, requests: int) -> None:
    """And steps become no longer than otherwise: the pacer knows how they will be padded."""
    paced = Pacer(2048, WIDTH, speculation, Costs(GPU), recorded_rows(2048, 135_000_000))
    streams = [sequence(str(n)) for n in range(requests)]
    for one in streams:
        for _ in range(30):
            paced.proposed(one.request.request_id, Proposal((9, 1, 1), (0, 0, 1), (1.0, 0.8, 0.7), [1, 1, 1], 2))
    alone = paced.step(streams, [])
    before = GPU.forward(row_bucket(requests + alone.nodes)) + alone.drafting * GPU.draft(requests)
    for tokens in (3, 20, 4000):
        pace = paced.step(streams, [waiting(tokens)])
        verified, padded = pass_sizes(requests + pace.nodes, pace.prefill, paced.recorded)
        assert verified + padded in RECORDED
        assert GPU.forward(verified + padded) + pace.drafting * GPU.draft(requests) <= 1.6 * before
        assert min(tokens - 1, LEAST_PREFILL) <= pace.prefill <= padded
        if tokens == 4000:
            assert pace.prefill > 100
            assert padded - pace.prefill < 0.4 * padded


def test_the_more_prompts_wait_the_more_is_prefilled() -> None:
    paced, streams = pacer(), [sequence("a"), sequence("b")]
    rows = [paced.step(streams, [waiting(200) for _ in range(number)]).prefill for number in (1, 2, 4, 8)]
    assert rows == sorted(set(rows))
    assert rows[-1] >= 4 * rows[0]


@pytest.mark.parametrize("speculation", ["auto", "5"])
def test_a_full_house_still_lets_prompts_in(speculation: str) -> None:
    paced = pacer(speculation, most_rows=40)
    streams = [sequence(str(n)) for n in range(32)]
    for _ in range(50):
        pace = paced.step(streams, [waiting(100)])
        assert pace.prefill >= LEAST_PREFILL
        assert 32 + pace.nodes + pace.prefill <= 40
