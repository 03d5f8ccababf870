"""Many requests, little memory: whatever is admitted, preempted, reused or cancelled, outputs are as each alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from redraft.drafts.none import NoDrafter
from redraft.server.engine import measure_costs
from redraft.server.engine.config import PAGE, EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.rows_plan import BUCKETS, recorded_rows
from redraft.server.engine.types import FinishReason, Request, SamplingParams

VOCAB, SLOTS = 512, 6
SHARED = tuple(range(30, 30 + PAGE + 40))
"""The beginning that many requests have in common."""


@pytest.fixture(scope="module")
def config(tiny_target: Callable[[str], Path], random_draft: Callable[..., Path]) -> EngineConfig:
    target = tiny_target("llama")
    return EngineConfig(
        target=str(target),
        target_name="tiny",
        target_sha="under-load",
        draft=str(random_draft(target)),
        dtype="fp32",
        device="cpu",
        max_num_seqs=SLOTS,
        max_nodes=4,
        max_model_len=600,
        max_num_batched_tokens=40,
        self_check=False,
        measure_costs=False,
    )


@pytest.fixture(scope="module")
def alone(config: EngineConfig) -> Callable[[Request], list[int]]:
    """What a request says by itself: no draft, no reuse, memory enough."""
    engine = build_engine(replace(config, draft="none", prefix_caching=False))

    def answer(request: Request) -> list[int]:
        return run(engine, [replace(request, cache_salt="")])[request.request_id]

    return answer


def run(engine: Engine, requests: Sequence[Request]) -> dict[str, list[int]]:
    """Outputs of requests submitted together; the accounts are checked after every step."""
    outputs: dict[str, list[int]] = {request.request_id: [] for request in requests}
    for request in requests:
        engine.submit(request)
    while engine.busy:
        for output in engine.step().outputs:
            outputs[output.request_id] += output.tokens
        engine.scheduler.check_integrity()
    idle(engine)
    return outputs


def idle(engine: Engine) -> None:
    stats = engine.scheduler.stats()
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
    assert engine.scheduler.pool.available == engine.scheduler.pool.total
    assert not engine.state.active.any()
    assert not engine.state.page_table.any()
    engine.scheduler.check_integrity()


def make(number: int, source: random.Random) -> Request:
    """A request of random length and sampling, often with the shared beginning."""
    prompt = [source.randrange(VOCAB) for _ in range(source.choice((1, 2, 9, 40, 110)))]
    if source.random() < 0.3:
        prompt = [*SHARED[: source.choice((PAGE - 1, PAGE, PAGE + 1, PAGE + 40))], *prompt]
    params = SamplingParams(
        max_tokens=source.choice((1, 3, 20, 160, 300)),
        temperature=source.choice((0.0, 0.0, 0.8)),
        top_k=source.choice((0, 20)),
        seed=number,
    )
    return Request(
        str(number),
        tuple(prompt),
        params,
        max_nodes=source.choice((None, None, 0, 2)),
        reuse=source.random() < 0.9,
        cache_salt=source.choice(("", "", "tenant")),
    )


@pytest.mark.parametrize(
    ("count", "lag"),
    [
        (60, 0),
        (40, 1),
        pytest.param(1000, 0, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
        pytest.param(500, 1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_outputs_are_those_of_each_alone_with_aborts_and_tiny_memory(
    config: EngineConfig, alone: Callable[[Request], list[int]], count: int, lag: int
) -> None:
    """``lag`` 1 is how a GPU is read, one round behind, and its passes are launched: padded to what is recorded."""
    source = random.Random(count)
    engine = build_engine(replace(config, kv_pages=5))
    engine.lag, engine.pacer.recorded = lag, lag * recorded_rows(40, 1)
    engine.graphs.make_recorder = (lambda: lambda run: run) if lag else None
    coming = [make(number, source) for number in range(count)]
    requests = {request.request_id: request for request in coming}
    outputs: dict[str, list[int]] = {}
    ended: dict[str, FinishReason] = {}
    while coming or engine.busy:
        while coming and source.random() < 0.5:
            request = coming.pop(0)
            if engine.scheduler.refusal(request) is None:
                engine.submit(request)
                outputs[request.request_id] = []
        if source.random() < 0.03 and outputs:
            name = source.choice(list(outputs))
            engine.cancel(name)
            if name not in ended:
                ended[name] = FinishReason.CANCELLED
        for output in engine.step().outputs:
            assert output.request_id not in ended
            outputs[output.request_id] += output.tokens
            if output.finish_reason is not None:
                ended[output.request_id] = output.finish_reason
        engine.scheduler.check_integrity()
    idle(engine)
    assert engine.scheduler.preemptions > 0
    assert engine.scheduler.reused_tokens > 0
    assert ended.keys() == outputs.keys()
    assert FinishReason.CANCELLED in ended.values()
    for name, tokens in outputs.items():
        expected = alone(requests[name])
        cut = ended[name] is FinishReason.CANCELLED
        assert tokens == (expected[: len(tokens)] if cut else expected), name


def test_a_preempted_request_goes_on_as_if_nothing_had_been(
    config: EngineConfig, alone: Callable[[Request], list[int]]
) -> None:
    engine = build_engine(replace(config, kv_pages=5))
    requests = [
        Request(str(n), tuple(range(n, n + 100)), SamplingParams(max_tokens=200, temperature=t, seed=n))
        for n, t in enumerate((0.0, 0.8, 0.0))
    ]
    assert run(engine, requests) == {request.request_id: alone(request) for request in requests}
    assert engine.scheduler.preemptions >= 2


def test_order_and_company_change_nothing(config: EngineConfig, alone: Callable[[Request], list[int]]) -> None:
    engine = build_engine(config)
    source = random.Random(5)
    requests = [make(number, source) for number in range(8)]
    expected = {request.request_id: alone(request) for request in requests}
    for _ in range(3):
        source.shuffle(requests)
        assert run(engine, requests) == expected


def test_a_reused_prefix_gives_the_same_tokens_and_costs_no_rows(config: EngineConfig) -> None:
    engine = build_engine(config)
    request = Request("r", (*SHARED, *SHARED), SamplingParams(max_tokens=30, temperature=0.7, seed=3))
    rows: list[int] = []
    prefill = engine.scheduler.prefill

    def counting(most: int) -> list:  # type: ignore[type-arg]
        chunks = prefill(most)
        rows.append(sum(chunk.count for chunk in chunks))
        return chunks

    engine.scheduler.prefill = counting  # type: ignore[method-assign, assignment]
    first = run(engine, [request])
    computed, rows[:] = sum(rows), []
    assert run(engine, [request]) == first
    assert computed == len(request.prompt) - 1
    assert sum(rows) == (len(request.prompt) - 1) % PAGE
    rows[:] = []
    assert run(engine, [replace(request, reuse=False)]) == first
    assert sum(rows) == computed
    rows[:] = []
    assert run(engine, [replace(request, cache_salt="other")]) == first
    assert sum(rows) == computed


def test_what_was_reused_is_told_with_the_first_tokens_once(config: EngineConfig) -> None:
    engine = build_engine(config)
    request = Request("r", SHARED, SamplingParams(max_tokens=5, temperature=0))
    told = []
    for _ in range(2):
        engine.submit(request)
        told.append([output.reused for _ in iter(lambda: engine.busy, False) for output in engine.step().outputs])
    assert (told[0][0], told[1][0]) == (0, PAGE)
    assert not any(told[0][1:] + told[1][1:])


@pytest.mark.parametrize("steps", [0, 1, 2, 6])
def test_cancelled_in_the_queue_in_prefill_or_mid_round(
    config: EngineConfig, alone: Callable[[Request], list[int]], steps: int
) -> None:
    engine = build_engine(replace(config, max_num_seqs=2))
    for lag in (0, 1):
        engine.lag = lag
        requests = [
            Request(f"{lag}-{n}", tuple(range(n, n + 60)), SamplingParams(max_tokens=40, temperature=0, seed=n))
            for n in range(4)
        ]
        outputs: dict[str, list[int]] = {request.request_id: [] for request in requests}
        for request in requests:
            engine.submit(request)
        for _ in range(steps):
            for output in engine.step().outputs:
                outputs[output.request_id] += output.tokens
        for number in (0, 2):
            engine.cancel(f"{lag}-{number}")
        while engine.busy:
            for output in engine.step().outputs:
                assert output.request_id[-1] in "13"
                outputs[output.request_id] += output.tokens
        idle(engine)
        for number in (1, 3):
            assert outputs[f"{lag}-{number}"] == alone(requests[number])


def test_drafts_are_exchanged_only_while_idle(config: EngineConfig) -> None:
    engine = build_engine(config)
    engine.submit(Request("r", (1, 2, 3), SamplingParams(max_tokens=3)))
    with pytest.raises(RuntimeError, match="idle"):
        engine.drafter = NoDrafter()
    while engine.busy:
        engine.step()
    pages = engine.scheduler.version
    engine.drafter = NoDrafter()
    assert engine.scheduler.version != pages, "pages without the draft's part are no use to the draft"


def test_a_request_may_have_no_more_nodes_than_it_asks_for(config: EngineConfig) -> None:
    engine = build_engine(config)
    for most in (0, 1, 3, None):
        engine.submit(
            Request(f"{most}", tuple(range(50)), SamplingParams(max_tokens=30, temperature=0), max_nodes=most)
        )
    drafted: dict[str, set[int]] = {}
    while engine.busy:
        for output in engine.step().outputs:
            drafted.setdefault(output.request_id, set()).add(output.drafted)
    assert drafted["0"] == {0}
    assert max(drafted["1"]) == 1
    assert max(drafted["3"]) == 3
    assert max(drafted["None"]) > 3


@pytest.mark.parametrize("speculation", ["auto", "off", "2"])
def test_however_much_is_drafted_the_output_is_the_same(
    config: EngineConfig, alone: Callable[[Request], list[int]], speculation: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("REDRAFT_CACHE", str(tmp_path))
    engine = build_engine(replace(config, speculation=speculation, measure_costs=True, kv_pages=9))
    assert not engine.state.kv[:, :, PAGE:].any(), "measuring leaves nothing behind but in the trash page"
    source = random.Random(11)
    requests = [make(number, source) for number in range(10)]
    assert run(engine, requests) == {request.request_id: alone(request) for request in requests}
    (kept,) = (tmp_path / "costs").glob("*.json")
    kept.write_text("{}")
    again = build_engine(replace(config, speculation=speculation, measure_costs=True, kv_pages=9))
    assert again.pacer.costs is not None
    assert json.loads(kept.read_text())["rows"][0] == BUCKETS[0]


def test_kept_costs_are_taken_if_a_look_at_the_machine_confirms_them(
    config: EngineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDRAFT_CACHE", str(tmp_path))
    config = replace(config, measure_costs=True, kv_pages=9)
    monkeypatch.setattr(measure_costs, "OFF", 100.0)
    notes = [build_engine(config).info.notes[-2] for _ in range(2)]
    assert notes[0].startswith("costs of passes: measured in")
    assert notes[1] == "costs of passes: as kept"
    (kept,) = (tmp_path / "costs").glob("*.json")
    table = json.loads(kept.read_text())
    # as if others had used the machine while the largest pass was measured
    kept.write_text(json.dumps({**table, "passes": [*table["passes"][:-1], 1000 * table["passes"][-1]]}))
    assert "measured in" in build_engine(config).info.notes[-2]
    assert json.loads(kept.read_text())["passes"][-1] < 100 * table["passes"][-1]
