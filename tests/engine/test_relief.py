"""Device memory that does not suffice in a pass: who needs too much alone fails, everybody else says what it would."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from inspect import isgeneratorfunction
from itertools import count
from typing import Any

import pytest
import torch

from redraft.server.engine import engine as engine_module
from redraft.server.engine.config import PAGE, EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.relief import RECOVERY_STEPS, Relief
from redraft.server.engine.types import FinishReason, Request, RoundOutput, SamplingParams

SLOTS, POISON = 6, 7
SHORT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 79 GiB.")


@pytest.fixture(scope="module")
def engine(quick_config: Callable[..., EngineConfig]) -> Engine:
    return build_engine(quick_config(max_num_seqs=SLOTS, max_nodes=4, max_model_len=600, max_num_batched_tokens=64))


def requests(poisoned: int | None = None) -> list[Request]:
    """Eight, some longer than a page; the prompt of one has the token ``POISON``, which no other has."""
    made = []
    for number in range(8):
        prompt = [20 + (number * 31 + i) % 300 for i in range(5 + number % 3 * (PAGE - 20))]
        params = SamplingParams(max_tokens=30, temperature=0.7 * (number % 2), seed=number)
        made.append(Request(str(number), tuple(prompt + [POISON] * (number == poisoned)), params))
    return made


def run(engine: Engine, asked: Sequence[Request]) -> dict[str, list[RoundOutput]]:
    """What came of requests submitted together; afterwards nobody holds anything."""
    found: dict[str, list[RoundOutput]] = {request.request_id: [] for request in asked}
    for request in asked:
        engine.submit(request)
    while engine.busy:
        for output in engine.step().outputs:
            found[output.request_id].append(output)
        engine.scheduler.check_integrity()
    stats = engine.scheduler.stats()
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
    assert not engine.state.active.any()
    assert not engine.state.page_table.any()
    return found


def tokens(outputs: Sequence[RoundOutput]) -> list[int]:
    return [token for output in outputs for token in output.tokens]


@pytest.fixture(scope="module")
def alone(engine: Engine) -> dict[str, list[int]]:
    """What each says by itself."""
    return {r.request_id: tokens(run(engine, [r])[r.request_id]) for r in requests()}


@pytest.fixture(autouse=True, params=[0, 1], ids=["at-once", "one-behind"])
def _fresh(engine: Engine, request: pytest.FixtureRequest) -> None:
    """No trouble yet; rounds are read as on a CPU, or one behind as on a GPU."""
    engine.scheduler.relief = Relief(SLOTS)
    engine.graphs.forget()
    engine.lag = request.param


def poisoned(engine: Engine) -> bool:
    """Whether the request that needs too much runs."""
    return any(POISON in s.request.prompt for s in engine.scheduler.running.values())


def breaking(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[[], bool], *, after: bool) -> None:
    """``owner.name`` runs out of memory ``when`` that is so, before it does anything or after it has done it."""
    real = getattr(owner, name)

    def broken(*args: Any, **options: Any) -> Any:
        if not after and when():
            raise SHORT
        result = real(*args, **options)
        if after and when():
            raise SHORT
        return result

    def broken_parts(*args: Any) -> Any:
        """Of a round, whose parts are run one by one."""
        if not after and when():
            raise SHORT
        result = yield from real(*args)
        if after and when():
            raise SHORT
        return result

    monkeypatch.setattr(owner, name, broken_parts if isgeneratorfunction(real) else broken)


PLACES = pytest.mark.parametrize(
    ("place", "after"), [("propose", False), ("forward", False), ("forward", True), ("round", True)]
)


def owner_of(engine: Engine, place: str) -> tuple[Any, str]:
    owners = {
        "propose": (engine.drafter, "propose"),
        "forward": (engine.target, "forward"),
        "round": (engine_module, "round_parts"),
    }
    return owners[place]


@PLACES
def test_who_needs_too_much_fails_and_nobody_else(engine, alone, monkeypatch, place, after, capfd):
    breaking(monkeypatch, *owner_of(engine, place), lambda: poisoned(engine), after=after)
    found = run(engine, requests(poisoned=3))
    (failed,) = found.pop("3")[-1:]
    assert failed.finish_reason is FinishReason.ERROR
    assert "not enough memory" in failed.error
    assert {name: tokens(outputs) for name, outputs in found.items()} == {k: v for k, v in alone.items() if k != "3"}
    assert engine.scheduler.stats().out_of_memory > 0
    assert "out of device memory in a pass for" in capfd.readouterr().err


@PLACES
def test_fewer_at_once_are_tried_before_anybody_fails(engine, alone, monkeypatch, place, after):
    most = []

    def too_many() -> bool:
        most.append(len(engine.scheduler.running))
        return most[-1] > 2

    breaking(monkeypatch, *owner_of(engine, place), too_many, after=after)
    found = run(engine, requests())
    assert {name: tokens(outputs) for name, outputs in found.items()} == alone
    assert max(most) == SLOTS


def test_one_pass_that_fails_costs_nobody_anything(engine, alone, monkeypatch):
    """Whichever it is, also where one of two has ended in a round that was not read yet."""
    short, long = (
        replace(r, params=replace(r.params, max_tokens=n)) for r, n in zip(requests(), (6, 30), strict=False)
    )
    for failing in range(1, 12):
        passes = count(1)

        def fails(number: int = failing, passes: Iterator[int] = passes) -> bool:
            return len(engine.scheduler.running) == 2 and next(passes) == number

        with monkeypatch.context() as patch:
            breaking(patch, engine_module, "round_parts", fails, after=failing % 2 == 0)
            found = run(engine, [short, long])
        assert tokens(found["0"]) == alone["0"][:6], failing
        assert tokens(found["1"]) == alone["1"], failing


def test_what_is_wrong_with_one_request_ends_that_one(engine, alone, monkeypatch, capfd):
    admit = engine.state.admit

    def broken(sequence: Any, nodes: int) -> None:
        admit(sequence, nodes)
        if POISON in sequence.request.prompt:
            raise TypeError("something about this one")

    monkeypatch.setattr(engine.state, "admit", broken)
    found = run(engine, requests(poisoned=3))
    failed = found.pop("3")
    assert [output.finish_reason for output in failed] == [FinishReason.ERROR]
    assert failed[0].error == "the request could not be begun (TypeError)"
    assert {name: tokens(outputs) for name, outputs in found.items()} == {k: v for k, v in alone.items() if k != "3"}
    assert "something about this one" in capfd.readouterr().err


def test_a_request_for_which_there_is_no_memory_to_begin_it(engine, alone, monkeypatch):
    """As in a pass: fewer at once are tried, and who does not fit alone fails."""
    admit = engine.state.admit

    def broken(sequence: Any, nodes: int) -> None:
        admit(sequence, nodes)
        if POISON in sequence.request.prompt or len(engine.scheduler.running) > 4:
            raise SHORT

    monkeypatch.setattr(engine.state, "admit", broken)
    found = run(engine, requests(poisoned=3))
    (failed,) = found.pop("3")
    assert failed.error == "the device has not enough memory for this request, even alone"
    assert {name: tokens(outputs) for name, outputs in found.items()} == {k: v for k, v in alone.items() if k != "3"}


def test_relief_gives_back_graphs_and_what_the_pass_had_made(engine, monkeypatch):
    """Before the cache is emptied: what is held then is not given back."""
    held, events = list[weakref.ref[torch.Tensor]](), list[str]()
    forget = engine.graphs.forget

    def broken(*_: Any) -> None:
        made = torch.zeros(3)
        held.append(weakref.ref(made))
        # one that is kept would keep what its frames hold
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def noted() -> bool:
        events.append("forget")
        return forget()

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "run_prefill", broken)
        patch.setattr(engine.graphs, "forget", noted)
        patch.setattr(torch.cuda, "empty_cache", lambda: events.append("given back" if held[-1]() is None else "held"))
        (outputs,) = run(engine, requests()[:1]).values()
    assert events == ["forget", "given back"]
    assert outputs[-1].finish_reason is FinishReason.ERROR


def test_nobody_fails_for_the_memory_of_graphs(engine, monkeypatch):
    """One that runs alone is tried again without them."""
    asked = replace(requests()[1], params=SamplingParams(max_tokens=250, seed=1))
    wanted = tokens(run(engine, [asked])["1"])
    recording = list[int]()

    def record(run: Callable[[], Any]) -> Callable[[], Any]:
        recording.append(len(engine.graphs.recorded))
        if len(recording) == 2:
            raise SHORT
        return run

    monkeypatch.setattr(engine.graphs, "make_recorder", lambda: record)
    assert tokens(run(engine, [asked])["1"]) == wanted
    assert recording[:2] == [0, 1]
    assert engine.scheduler.stats().out_of_memory == 1


def test_a_device_that_failed_ends_the_engine(engine, monkeypatch):
    def dead(sequence: Any, nodes: int) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    with monkeypatch.context() as patch:
        patch.setattr(engine.state, "admit", dead)
        engine.submit(requests()[0])
        with pytest.raises(torch.AcceleratorError):
            engine.step()
    engine.cancel("0")


def test_trouble_halves_and_calm_doubles():
    relief = Relief(8)
    relief.failed(8, alone=False)
    relief.failed(4, alone=False)
    assert relief.most == 2
    for _ in range(RECOVERY_STEPS - 1):
        relief.passed()
    assert relief.most == 2
    relief.passed()
    assert relief.most == 4
    for _ in range(2 * RECOVERY_STEPS):
        relief.passed()
    assert relief.most == 8
    relief.failed(3, alone=False)
    assert relief.most == 1
    relief.failed(1, alone=False)
    assert relief.most == 1, "not that one, but graphs were to blame"
    relief.failed(1, alone=True)
    assert (relief.most, relief.failures) == (8, 5), "that one was to blame"
