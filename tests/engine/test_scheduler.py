"""First come, first served; slots and pages come back however a request ends; who must give way loses nothing."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.server.engine.config import PAGE
from redraft.server.engine.scheduler import Scheduler
from redraft.server.engine.types import Request, SamplingParams

TREE = 6


def request(name: str, prompt: int = 10, max_tokens: int = 10, start: int = 0, **more: object) -> Request:
    return Request(name, tuple(range(start, start + prompt)), SamplingParams(max_tokens=max_tokens), **more)  # type: ignore[arg-type]


def scheduler(slots: int = 2, pages: int = 8, **more: bool) -> Scheduler:
    return Scheduler(slots, pages, max_model_len=512, tree_rows=TREE, **more)


def names(sequences: list) -> list[str]:  # type: ignore[type-arg]
    return [sequence.request.request_id for sequence in sequences]


def prefill(s: Scheduler, rows: int = 10**9) -> list[tuple[str, int, int]]:
    """Prefill as the engine does; what was done."""
    chunks = s.prefill(rows)
    for chunk in chunks:
        chunk.sequence.prefilled(chunk.count)
        s.publish(chunk.sequence)
    return [(chunk.sequence.request.request_id, chunk.start, chunk.count) for chunk in chunks]


def commit(s: Scheduler, name: str, tokens: list[int]) -> None:
    s.running[name].committed(tokens)
    s.publish(s.running[name])


def test_requests_are_admitted_in_order_while_slots_last() -> None:
    s = scheduler()
    for name in "abc":
        s.add(request(name))
    assert names(s.admit()) == ["a", "b"]
    assert s.admit() == []
    s.release("a")
    assert names(s.admit()) == ["c"]


def test_a_small_request_does_not_overtake_one_that_waits_for_pages() -> None:
    s = scheduler(slots=3, pages=4)
    s.add(request("a", prompt=200))
    s.add(request("big", prompt=300))
    s.add(request("small"))
    assert names(s.admit()) == ["a"]
    assert s.stats().waiting == 2


def test_a_newcomer_leaves_a_page_for_everybody_who_runs() -> None:
    s = scheduler(pages=2)
    s.add(request("a"))
    s.add(request("b"))
    assert names(s.admit()) == ["a"], "one page is left, and a will need it"


def test_pages_cover_the_text_and_a_whole_tree_and_grow_with_it() -> None:
    s = scheduler()
    s.add(request("a", prompt=PAGE - TREE, max_tokens=500))
    (a,) = s.admit()
    assert len(a.pages) == 1
    prefill(s)
    assert s.grow(1) == ([], [])
    commit(s, "a", [5])
    assert s.grow(1) == ([(a, 1)], [])
    assert len(a.pages) == 2
    commit(s, "a", [6] * (2 * PAGE - TREE - len(a.tokens)))
    assert s.grow(1) == ([], [])
    assert s.grow(2) == ([(a, 2)], []), "a round that was not heard of may have written as much again"


def test_nobody_gets_pages_beyond_its_limit() -> None:
    s = scheduler()
    s.add(request("a", prompt=10, max_tokens=PAGE - TREE - 10))
    (a,) = s.admit()
    prefill(s)
    commit(s, "a", [1] * (PAGE - TREE - 11))
    assert s.grow(5) == ([], [])
    assert len(a.pages) == 1


def test_prefill_leaves_the_anchor_and_shares_its_rows_oldest_first() -> None:
    s = scheduler()
    s.add(request("a", prompt=150))
    s.add(request("b", prompt=5, start=900))
    s.admit()
    assert prefill(s, 100) == [("a", 0, 100)]
    assert names(s.prefilling()) == ["a", "b"]
    assert prefill(s, 51) == [("a", 100, 49), ("b", 0, 2)]
    assert names(s.decoding()) == ["a"]
    assert prefill(s, 100) == [("b", 2, 2)]
    assert names(s.decoding()) == ["a", "b"]


def test_a_prompt_of_one_token_needs_no_prefill() -> None:
    s = scheduler()
    s.add(request("a", prompt=1))
    (a,) = s.admit()
    assert a.decoding


def test_the_youngest_gives_way_and_goes_on_where_it_was() -> None:
    s = scheduler(slots=3, pages=5)
    for number, name in enumerate("ab"):
        s.add(request(name, prompt=PAGE + 20, max_tokens=300, start=1000 * number))
    s.admit()
    s.add(request("c", start=9000))
    prefill(s)
    commit(s, "b", [7, 8, 9])
    a, b = s.running["a"], s.running["b"]
    commit(s, "a", [1] * (2 * PAGE - 20))
    assert s.is_short(1)
    grown, vacated = s.grow(1)
    assert (names([sequence for sequence, _ in grown]), vacated) == (["a"], [1])
    assert names(list(s.waiting)) == ["b", "c"], "it was there before c"
    assert b.tokens[-3:] == [7, 8, 9]
    s.check_integrity()
    assert s.admit() == []
    s.release("a")
    assert names(s.admit()) == ["b", "c"]
    assert b.to_prefill == len(b.tokens) - 1 - b.computed
    assert b.limit == PAGE + 320, "as long as it might have become before"
    assert s.stats().preemptions == 1
    assert a.slot is None


def test_the_oldest_takes_from_everybody_else_and_never_gives_way() -> None:
    s = scheduler(slots=4, pages=5)
    s.add(request("old", prompt=PAGE, max_tokens=500))
    for number in range(2):
        s.add(request(f"n{number}", start=2000 + 1000 * number))
    s.admit()
    prefill(s)
    while len(s.running["old"].tokens) < s.running["old"].limit:
        _, vacated = s.grow(1)
        assert 0 not in vacated
        commit(s, "old", [3])
        s.check_integrity()
    assert names(list(s.running.values())) == ["old"]
    assert names(list(s.waiting)) == ["n0", "n1"]


def test_the_same_beginning_is_taken_over_but_for_the_last_token() -> None:
    s = scheduler(slots=4, pages=12)
    s.add(request("a", prompt=2 * PAGE + 5))
    (a,) = s.admit()
    prefill(s)
    s.add(request("b", prompt=2 * PAGE))
    s.add(request("other", prompt=2 * PAGE, start=1))
    b, other = s.admit()
    assert (b.computed, b.reused, b.pages[:1]) == (PAGE, PAGE, a.pages[:1]), "the last token's state is still needed"
    assert (other.reused, other.pages[0] in a.pages) == (0, False)
    s.check_integrity()
    assert s.stats().reused_tokens == PAGE
    assert s.stats().prompt_tokens == 6 * PAGE + 5


def test_what_was_said_is_reused_like_what_was_asked() -> None:
    s = scheduler()
    s.add(request("a", prompt=PAGE - 2))
    s.admit()
    prefill(s)
    commit(s, "a", [1, 2, 3])
    s.release("a")
    prompt = (*range(PAGE - 2), 1, 2, 3, 99)
    s.add(Request("b", prompt, SamplingParams(max_tokens=5)))
    (b,) = s.admit()
    assert b.reused == PAGE


def test_salts_versions_and_switches_keep_requests_apart() -> None:
    for one, two, switch in (
        ({"cache_salt": "x"}, {}, True),
        ({"reuse": False}, {}, True),
        ({}, {"reuse": False}, True),
        ({}, {}, False),
    ):
        s = scheduler(reuse=switch)
        s.add(request("a", prompt=PAGE + 1, **one))
        s.admit()
        prefill(s)
        s.add(request("b", prompt=PAGE + 1, **two))
        (b,) = s.admit()
        assert b.reused == 0, (one, two, switch)
    s = scheduler()
    s.add(request("a", prompt=PAGE + 1))
    s.admit()
    prefill(s)
    s.version = "another draft"
    s.add(request("b", prompt=PAGE + 1))
    assert s.admit()[0].reused == 0


def test_kept_pages_are_no_reason_to_wait() -> None:
    s = scheduler(pages=3)
    s.add(request("a", prompt=2 * PAGE + 5))
    s.admit()
    prefill(s)
    s.release("a")
    assert (s.stats().pages_kept, s.stats().pages_used) == (2, 0)
    s.add(request("b", prompt=2 * PAGE + 5, start=5000))
    assert names(s.admit()) == ["b"]
    s.check_integrity()


def test_what_can_never_run_is_refused_with_the_numbers() -> None:
    s = scheduler(pages=2)
    assert s.refusal(request("a", prompt=0)) == "the prompt is empty"
    assert "511 is the most" in (s.refusal(request("a", prompt=512)) or "")
    assert "needs 3 KV pages; there are 2" in (s.refusal(request("a", prompt=300)) or "")
    assert s.refusal(request("a")) is None
    s.add(request("a"))
    assert "in use" in (s.refusal(request("a")) or "")


def test_release_finds_a_request_wherever_it_is() -> None:
    s = scheduler(slots=1)
    s.add(request("a"))
    s.add(request("b"))
    s.admit()
    assert s.release("b") is None
    assert s.release("unknown") is None
    assert s.release("a") == 0
    s.check_integrity()
    assert s.stats().waiting == 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_happens_everybody_gets_done_in_order_and_nothing_is_lost(data: st.DataObject) -> None:
    """The engine's loop with made-up tokens: submissions, aborts, growth, preemption, reuse."""
    draw = data.draw
    s = scheduler(slots=draw(st.integers(1, 4)), pages=draw(st.integers(4, 9)))
    unread = draw(st.integers(1, 2))
    alive: dict[str, list[int]] = {}
    admitted: list[int] = []
    submitted = 0
    while submitted < 12 or alive:
        if submitted < 12 and (not alive or draw(st.booleans())):
            prompt = [draw(st.integers(0, 1))] * draw(st.integers(1, 300))
            one = Request(str(submitted), tuple(prompt), SamplingParams(max_tokens=draw(st.integers(1, 200))))
            submitted += 1
            if s.refusal(one) is None:
                s.add(one)
                alive[one.request_id] = list(prompt)
        if alive and draw(st.integers(0, 9)) == 0:
            name = draw(st.sampled_from(sorted(alive)))
            s.release(name)
            del alive[name]
        s.grow(unread)
        s.check_integrity()
        for sequence in s.admit():
            if len(sequence.tokens) == len(sequence.request.prompt):
                admitted.append(int(sequence.request.request_id))
            assert sequence.computed < len(sequence.tokens)
        s.check_integrity()
        decoding = s.decoding()
        prefill(s, draw(st.integers(8, 200)))
        for sequence in decoding:
            name = sequence.request.request_id
            # what a round writes stays in its pages
            assert len(sequence.pages) * PAGE >= min(len(sequence.tokens), sequence.limit) + TREE
            tokens = [draw(st.integers(0, 1))] * min(draw(st.integers(1, TREE)), sequence.limit - len(sequence.tokens))
            commit(s, name, tokens)
            alive[name] += tokens
            assert sequence.tokens == alive[name]
            if len(sequence.tokens) == sequence.limit:
                s.release(name)
                del alive[name]
        s.check_integrity()
    assert s.pool.used == 0
    assert s.pool.available == s.pool.total
    assert admitted == sorted(admitted)


def test_the_control_plane_loads_no_torch() -> None:
    modules = "scheduler, pages, prefix, sequence, pace, budget, costs, acceptance, types, config, client, wire, remote"
    code = f"import sys; from redraft.server.engine import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
