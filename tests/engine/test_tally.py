"""What passes and rounds came to: made-up rounds by hand, and an engine's sums against what it committed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from redraft.server.engine.config import EngineConfig
from redraft.server.engine.costs import Costs, CostTable, PlainCost, Work
from redraft.server.engine.load import build_engine
from redraft.server.engine.pace import Pacer
from redraft.server.engine.prefix import PageKeys
from redraft.server.engine.readback import Outcome, PendingRound
from redraft.server.engine.rows_plan import row_bucket
from redraft.server.engine.sequence import Sequence
from redraft.server.engine.tally import Tally
from redraft.server.engine.types import PASS_EDGES, PassStats, Request, SamplingParams

TABLE = CostTable((2, 8, 64), (0.010, 0.010, 0.024), 0.0, 0.0, (1,), (0.003,), round=0.001)


@dataclass
class Took:
    """A round by its measurements alone."""

    seconds: float | None
    plain: PlainCost | None
    drafting: bool
    watch: Any = field(init=False)
    work: Any = field(init=False)

    def __post_init__(self) -> None:
        self.watch = None if self.seconds is None else SimpleNamespace(seconds=self.seconds)
        self.work = Work(8, 2, drafting=self.drafting)


def sequence(name: str, tokens: int) -> Sequence:
    request = Request(name, tuple(range(tokens)), SamplingParams(max_tokens=100))
    made = Sequence(request, 1000, PageKeys("", ""), list(range(tokens)), slot=0)
    made.computed = tokens - 1
    return made


def outcome(tokens: int, drafted: int = 0, forced: int = 0) -> Outcome:
    return cast(
        "Outcome", SimpleNamespace(tokens=[7] * tokens, drafted=drafted, sequence=SimpleNamespace(forced=forced))
    )


def tell(tally: Tally, seconds: float | None, plain: PlainCost | None, drafting: bool, *outcomes: Outcome) -> None:
    tally.round(cast("PendingRound", Took(seconds, plain, drafting)), outcomes)


def test_made_up_rounds() -> None:
    tally = Tally()
    plain = PlainCost(step=0.02, further=0.01)
    # five tokens of two requests: two and a half plain rounds, the first of them with the prefill
    tell(tally, 0.03, plain, True, outcome(3, drafted=4), outcome(2, drafted=2, forced=1))
    # without a draft a round is what it would have been
    tell(tally, 0.017, plain, False, outcome(1), outcome(1))
    # all of its requests are gone
    tell(tally, 9.0, plain, True)
    # more was forced than had room
    tell(tally, 0.01, plain, True, outcome(1, drafted=1, forced=5))
    # one that was recorded took longer than it says anything of
    tell(tally, None, plain, True, outcome(4, drafted=5))
    stats = tally.stats()
    assert (stats.rows, stats.nodes, stats.forced) == (8 + 2 + 2 + 6, 12, 2)
    assert stats.rounds == (0, 4, *[0] * (len(PASS_EDGES) - 1))
    assert stats.round_seconds == pytest.approx(0.057)
    assert stats.plain_seconds == pytest.approx(0.035 + 0.017 + 0.02)
    for tokens in (0, 1, 9, 16, 20000):
        tally.passed(tokens)
    stats = tally.stats()
    assert (sum(stats.sizes), stats.tokens) == (4, 20026)
    assert (stats.sizes[0], stats.sizes[2], stats.sizes[-1]) == (1, 2, 1)


def test_without_measured_costs_there_is_no_estimate() -> None:
    tally = Tally()
    tell(tally, 0.03, None, True, outcome(3, drafted=4))
    assert (tally.stats().round_seconds, tally.stats().plain_seconds) == (0.03, 0.0)
    assert Pacer(64, 4, "auto", None).step([sequence("a", 5)], []).plain is None


@pytest.mark.parametrize("speculation", ["auto", "3"])
def test_a_plain_step_is_what_the_table_says(speculation: str) -> None:
    pacer = Pacer(64, 4, speculation, Costs(TABLE))
    decoding = [sequence("a", 5), sequence("b", 5)]
    plain = pacer.step(decoding, []).plain
    assert plain is not None
    assert (plain.step, plain.further) == pytest.approx((0.011, 0.011))
    waiting = sequence("c", 60)
    waiting.computed = 0
    pace = pacer.step(decoding, [waiting])
    assert pace.plain is not None
    assert pace.prefill > 0
    expected = TABLE.forward(row_bucket(2 + pace.prefill)) + 0.001
    assert pace.plain.step == pytest.approx(expected)
    assert pace.plain.of(3) == pytest.approx(expected + 0.022)


@pytest.mark.parametrize("draft", ["ngram", "none"])
def test_an_engines_sums_are_of_what_it_did(random_target: Callable[[str], Path], draft: str) -> None:
    folder = random_target("llama")
    config = EngineConfig(
        str(folder),
        "tiny",
        "0",
        draft,
        device="cpu",
        dtype="fp32",
        max_num_seqs=2,
        self_check=False,
        measure_costs=False,
    )
    engine = build_engine(config)
    engine.pacer.costs = Costs(TABLE)
    prompts = [(5, 6, 7) * 9, (8, 9), (5, 6, 7) * 4]
    for number, prompt in enumerate(prompts):
        engine.submit(Request(str(number), prompt, SamplingParams(max_tokens=30, ignore_eos=True)))
    tokens = drafted = outputs = 0
    queued = []
    stats = PassStats()
    while engine.busy:
        step = engine.step()
        stats = step.stats.passes
        for output in step.outputs:
            tokens += len(output.tokens)
            drafted += output.drafted
            outputs += 1
            if output.prompt_seconds is not None:
                queued.append(output.queue_seconds)
    # of a prompt all but the last token is prefilled
    assert stats.tokens == tokens + sum(len(prompt) - 1 for prompt in prompts)
    assert (stats.nodes, stats.rows) == (drafted, outputs + drafted)
    assert (drafted > 0) == (draft == "ngram")
    assert sum(stats.rounds) <= sum(stats.sizes)
    assert stats.round_seconds > 0
    assert stats.plain_seconds > 0 if draft == "ngram" else stats.plain_seconds == stats.round_seconds
    # two run at once, the third waits for one of them
    assert 0 <= min(queued) < queued[2] == max(queued)
