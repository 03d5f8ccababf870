"""The simulated engine does step for step what the real one does; and what is recorded of a real one."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from redraft.benchmarks.simulate_device import seconds
from redraft.benchmarks.simulate_engine import encode
from redraft.benchmarks.simulate_record import costs, paced_by, record, setup_of
from redraft.benchmarks.simulate_replica import Replica
from redraft.benchmarks.simulate_script import jobs
from redraft.benchmarks.simulate_trace import Trace
from redraft.benchmarks.simulate_validate import report, validate
from redraft.benchmarks.tiny import CONTEXT, HIDDEN, INTERMEDIATE, LAYERS, VOCAB
from redraft.drafts.checkpoint import write_draft
from redraft.drafts.dflash_config import DFlashConfig
from redraft.drafts.training.module import DFlashModule
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.configure import configure
from redraft.server.engine.costs import Costs, CostTable, Work
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.pace import Pacer
from redraft.server.engine.types import EngineStats, Request, RoundOutput, SamplingParams

TABLE = CostTable(
    rows=(2, 6, 8, 16, 32, 64, 128),
    passes=(0.014, 0.014, 0.016, 0.021, 0.033, 0.060, 0.112),
    per_request=1e-6,
    per_row=2e-6,
    requests=(1, 16),
    drafts=(0.003, 0.013),
    round=0.001,
)
FEW: dict[str, object] = {"kv_pages": 5, "max_nodes": 5}
"""With more nodes the first request is done before there are no pages left."""
GREEDY = SamplingParams(max_tokens=32, temperature=0.0)
DRAFT = DFlashConfig(
    layers=1,
    hidden=HIDDEN,
    intermediate=INTERMEDIATE,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocab=VOCAB,
    norm_eps=1e-6,
    rope_theta=10000.0,
    block_size=4,
    mask_token_id=0,
    taps=(0, 1),
    target_layers=LAYERS,
    max_positions=CONTEXT,
)
QUESTIONS = (
    "Natalia sold clips to 48 of her friends in April, and half as many in May. How many did she sell altogether?",
    "Weng earns 12 dollars an hour for babysitting. Yesterday she did 50 minutes of it. How much did she earn?",
    "Write a Python function that tells whether a number is prime, and explain each of its lines.",
    "What are the three largest cities of Italy, and what is each of them known for?",
    "Tom has 3 boxes with 12 pencils each and gives away 7 pencils. How many are left?",
    "Explain how a rainbow comes about, in simple words.",
)
BuildEngine = Callable[..., Engine]
Step = tuple[list[tuple[str, int, int, int]], tuple[int, int, int]]
"""What a step brought, and how many run, wait and what pages they hold."""


@dataclass(frozen=True)
class Run:
    steps: list[Step]
    works: list[Work]
    """Of every round."""
    preemptions: int


@pytest.fixture(scope="module")
def build(tiny_target: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildEngine:
    """An engine over the tiny target, with a random draft and n-gram lookup unless told otherwise."""
    folder = tmp_path_factory.mktemp("drafts") / "random"
    torch.manual_seed(0)
    write_draft(folder, DRAFT, DFlashModule(DRAFT).state_dict(), None, {"name": "random"})

    def make(**changes: object) -> Engine:
        config = EngineConfig(str(tiny_target), "tiny", "0", draft=str(folder), dtype="fp32", device="cpu")
        quick = replace(config, max_num_seqs=4, max_model_len=400, self_check=False, measure_costs=False)
        return build_engine(replace(quick, prefix_caching=False, **changes))  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    chance = random.Random(0)
    lengths = (100, 9, 12, 10, 9, 112, 150)
    return [[chance.randrange(30, 40) for _ in range(length)] for length in lengths]


class ByTheTable(Pacer):
    """Is told that every round took what the table says, and remembers it."""

    def __init__(self, engine: Engine, speculation: str) -> None:
        super().__init__(engine.pacer.most_rows, engine.pacer.most_nodes, speculation, Costs(TABLE))
        self.works: list[Work] = []

    def took(self, work: Work, seconds_taken: float) -> None:
        self.works.append(work)
        super().took(work, seconds(TABLE, work))


def seen(outputs: Sequence[RoundOutput], stats: EngineStats) -> Step:
    events = [(one.request_id, len(one.tokens), one.accepted, one.drafted) for one in outputs]
    return events, (stats.running, stats.waiting, stats.pages_used)


def real(engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams, speculation: str) -> Run:
    """A run of the real engine, its costs by the table."""
    pacer, steps, before = ByTheTable(engine, speculation), list[Step](), engine.scheduler.preemptions
    with paced_by(engine, pacer):
        for number, prompt in enumerate(prompts):
            engine.submit(Request(str(number), tuple(prompt), params, reuse=False))
        while engine.busy:
            out = engine.step()
            steps.append(seen(out.outputs, out.stats))
    return Run(steps, pacer.works, engine.scheduler.preemptions - before)


def simulated(engine: Engine, trace: Trace, speculation: str) -> Run:
    """A run of its simulation."""
    replica = Replica(replace(setup_of(engine), speculation=speculation, adaptive=True), TABLE)
    replica.pacer = pacer = ByTheTable(engine, speculation)
    for job in jobs(len(trace.texts), trace, None, None, 0):
        replica.submit(job)
    now, steps = 0.0, list[Step]()
    while replica.busy:
        now, outputs = replica.step(now)
        steps.append(seen(outputs, replica.scheduler.stats()))
    assert now == pytest.approx(replica.counts.busy), "with such a load no device idles"
    return Run(steps, pacer.works, replica.scheduler.preemptions)


@pytest.mark.parametrize("lag", [0, 1], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize(
    ("changes", "speculation"),
    [({}, "auto"), ({"draft": "ngram"}, "3"), ({"max_nodes": 2, "max_num_batched_tokens": 20}, "auto"), (FEW, "auto")],
    ids=["default", "fixed", "bounded", "few pages"],
)
def test_every_step_is_the_real_engine_s(
    build: BuildEngine, prompts: list[list[int]], changes: dict[str, object], speculation: str, lag: int
) -> None:
    params = GREEDY
    engine = build(**changes)
    engine.lag = lag
    if changes is FEW:  # two pages each at their ends
        prompts, params = prompts[1:5], replace(GREEDY, max_tokens=150)
    run = real(engine, prompts, params, speculation)
    assert any(work.drafting for work in run.works)
    assert (run.preemptions > 0) == (changes is FEW)
    assert simulated(engine, record(engine, prompts, params), speculation) == run


def test_a_trace_has_a_tree_for_every_token(build: BuildEngine, prompts: list[list[int]]) -> None:
    engine = build(draft="ngram", max_nodes=3)
    own = engine.pacer
    trace = record(engine, prompts[:3], GREEDY)
    assert engine.pacer is own
    assert trace.width == 3
    assert [text.prompt_tokens for text in trace.texts] == [len(prompt) for prompt in prompts[:3]]
    assert [len(text.trees) for text in trace.texts] == [GREEDY.max_tokens] * 3, "no answer ends by itself"
    assert trace.facts["draft"] == "ngram-1"
    assert all(len(tree.parent) <= 3 for text in trace.texts for tree in text.trees)
    assert any(any(tree.right) for text in trace.texts for tree in text.trees)


def test_what_lies_behind_an_answer_s_end_is_known(build: BuildEngine, prompts: list[list[int]]) -> None:
    engine = build(draft="ngram")
    short, long = (record(engine, prompts[:3], replace(GREEDY, max_tokens=count)).texts for count in (16, 32))
    assert [text.trees for text in short] == [text.trees[:16] for text in long]


def test_nothing_is_exchanged_or_measured_on_an_engine_at_work(build: BuildEngine, prompts: list[list[int]]) -> None:
    engine = build()
    engine.submit(Request("x", tuple(prompts[0]), GREEDY))
    with pytest.raises(RuntimeError, match="idle"), paced_by(engine, engine.pacer):
        pass
    with pytest.raises(RuntimeError, match="idle"):
        costs(engine)


@pytest.fixture
def cpu_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks that stand while others have the core: with one thread, seconds as on a machine of one's own."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)


@pytest.mark.usefixtures("cpu_seconds")
def test_a_run_on_the_tiny_target_is_about_as_fast_as_simulated(build: BuildEngine, prompts: list[list[int]]) -> None:
    """Only about: its passes take half a millisecond, and what a step takes beside them varies by as much."""
    engine = build(draft="ngram", speculation="3")
    drafter = engine.drafter
    trace = record(engine, prompts, GREEDY)
    first = validate(engine, prompts, GREEDY, trace, 4)
    beside = sum(row["parts"]["outside_seconds_per_round"] for row in first) / len(first)
    rows = validate(engine, prompts, GREEDY, trace, 4, host_seconds=beside)
    print(report(rows))
    for row in rows:
        assert row["real"]["tokens"] == row["simulated"]["tokens"]
        assert 0.6 < row["ratio"] < 1.6
    assert rows[1]["simulated"]["tau"] == pytest.approx(rows[1]["real"]["tau"], rel=0.05)
    assert engine.drafter is drafter


@pytest.mark.slow
@pytest.mark.usefixtures("cpu_seconds")
@pytest.mark.parametrize("users", [1, 4])
def test_a_run_of_a_real_target_is_as_fast_as_simulated(smollm2: Path, users: int) -> None:
    """Within 10 %, in seconds of CPU, of which others on the machine take away less than of the clock's."""
    config = replace(configure("smollm2-135m", None, offline=True), max_num_seqs=4, max_model_len=512)
    engine = build_engine(replace(config, prefix_caching=False, self_check=False))
    prompts = encode(config, QUESTIONS)
    trace = record(engine, prompts, GREEDY)
    rows = validate(engine, prompts, GREEDY, trace, users)
    print(report(rows))
    for row in rows:
        assert row["real"]["tokens"] == row["simulated"]["tokens"]
        assert row["ratio"] == pytest.approx(1, abs=0.1)
