"""First come, first served; slots and pages come back however a request ends."""

import subprocess
import sys

from redraft.server.engine.scheduler import Scheduler
from redraft.server.engine.types import Request, SamplingParams


def request(name: str, prompt: int = 10, max_tokens: int = 10) -> Request:
    return Request(name, tuple(range(prompt)), SamplingParams(max_tokens=max_tokens))


def scheduler(slots: int = 2, pages: int = 4) -> Scheduler:
    return Scheduler(slots, pages, max_model_len=512, tree_rows=6, prefill_chunk=100)


def test_requests_are_admitted_in_order_while_slots_last() -> None:
    s = scheduler()
    for name in "abc":
        s.add(request(name))
    assert [r.request.request_id for r in s.admit()] == ["a", "b"]
    assert s.admit() == []
    s.release("a")
    assert [r.request.request_id for r in s.admit()] == ["c"]


def test_a_small_request_does_not_overtake_one_that_waits_for_pages() -> None:
    s = scheduler(slots=3, pages=4)
    s.add(request("a", prompt=200))
    s.add(request("big", prompt=300))
    s.add(request("small"))
    assert [r.request.request_id for r in s.admit()] == ["a"]
    assert s.stats().waiting == 2


def test_pages_cover_the_longest_output_and_a_whole_tree() -> None:
    s = scheduler()
    assert s.pages_for(request("a", prompt=100, max_tokens=22)) == 1
    assert s.pages_for(request("a", prompt=100, max_tokens=23)) == 2
    assert s.pages_for(request("a", prompt=10, max_tokens=10**9)) == s.pages_for(request("a", prompt=502))


def test_prefill_leaves_the_anchor_and_goes_chunk_by_chunk_oldest_first() -> None:
    s = scheduler()
    s.add(request("a", prompt=150))
    s.add(request("b", prompt=5))
    s.admit()
    chunk = s.next_chunk()
    assert chunk is not None
    assert (chunk.running.request.request_id, chunk.start, chunk.count) == ("a", 0, 100)
    chunk.running.prefilled += chunk.count
    chunk = s.next_chunk()
    assert chunk is not None
    assert (chunk.start, chunk.count) == (100, 49)
    chunk.running.prefilled += chunk.count
    assert [r.request.request_id for r in s.decoding()] == ["a"]
    chunk = s.next_chunk()
    assert chunk is not None
    assert (chunk.running.request.request_id, chunk.count) == ("b", 4)


def test_a_prompt_of_one_token_needs_no_prefill() -> None:
    s = scheduler()
    s.add(request("a", prompt=1))
    (running,) = s.admit()
    assert running.decoding


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
    assert s.release("a") is not None
    s.check_integrity()
    assert s.stats().waiting == 0


def test_the_control_plane_loads_no_torch() -> None:
    modules = "scheduler, pages, types, config, client, wire, remote"
    code = f"import sys; from redraft.server.engine import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
