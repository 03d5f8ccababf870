"""Who runs: first come, first served, by slots and pages.  Torch-free.

A request gets pages for its prompt when it is admitted, and more as it grows.  When there are none, the youngest that
runs gives up its place and waits at the head of the queue with what it has said so far; its text is prefilled again
later, which gives the same bits (docs/structure.md), so nothing of its output changes.  The oldest never has to, so
everybody gets done.  Full pages are published as soon as they are computed: whoever comes with the same beginning
takes them over.

A prompt, all but its last token, is prefilled in chunks; the last one is the anchor of its first round.
"""

from __future__ import annotations

import time
from bisect import insort
from collections import deque
from dataclasses import dataclass

from redraft.server.engine.config import PAGE
from redraft.server.engine.grammar import Matcher
from redraft.server.engine.pages import PagePool
from redraft.server.engine.prefix import PageKeys
from redraft.server.engine.relief import Relief
from redraft.server.engine.sequence import Sequence
from redraft.server.engine.tally import Tally
from redraft.server.engine.types import EngineStats, Request


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """``count`` tokens of one sequence from position ``start``."""

    sequence: Sequence
    start: int
    count: int


class Scheduler:
    """Queue, slots and pages of one engine."""

    def __init__(self, slots: int, pages: int, max_model_len: int, tree_rows: int, *, reuse: bool = True) -> None:
        """``tree_rows``: cells beyond the committed ones that a round may write for one request.

        ``reuse``: whether pages of one request may serve another.
        """
        self.pool = PagePool(pages)
        self.max_model_len = max_model_len
        self.tree_rows = tree_rows
        self.reuse = reuse
        self.version = ""
        """Of what pages hold besides the target's KV; pages of one version are not reused by another."""
        self.waiting: deque[Sequence] = deque()
        self.running: dict[str, Sequence] = {}
        """Oldest first."""
        self.relief = Relief(slots)
        self.tally = Tally()
        """What became of the passes; the engine tells."""
        self.preemptions = 0
        self.prompt_tokens = 0
        """Of all prompts that were admitted, and how many of them were found computed."""
        self.reused_tokens = 0
        self._slots = list(range(slots))

    def limit(self, request: Request) -> int:
        """Longest this request may become, in tokens."""
        return min(len(request.prompt) + request.params.max_tokens, self.max_model_len)

    def refusal(self, request: Request) -> str | None:
        """Why this request can never run, or None."""
        if request.request_id in self.running or any(s.request.request_id == request.request_id for s in self.waiting):
            return f"request id {request.request_id!r} is in use"
        if not request.prompt:
            return "the prompt is empty"
        if request.params.max_tokens < 1:
            return f"max_tokens must be at least 1, not {request.params.max_tokens}"
        if len(request.prompt) >= self.max_model_len:
            return f"the prompt has {len(request.prompt)} tokens; {self.max_model_len - 1} is the most that fits"
        needed = _pages(self.limit(request) + self.tree_rows)
        if needed > self.pool.total:
            return f"the request needs {needed} KV pages; there are {self.pool.total}"
        return None

    def add(self, request: Request, matcher: Matcher | None = None) -> None:
        """``matcher``: of the request's grammar."""
        keys = PageKeys(self.version, request.cache_salt)
        self.waiting.append(Sequence(request, self.limit(request), keys, list(request.prompt), matcher=matcher))

    def grow(self, rounds: int) -> tuple[list[tuple[Sequence, int]], list[int]]:
        """Give everything that decodes room for ``rounds`` rounds that the host will not have heard of.

        Returns who got pages, with how many it had, and the slots of those who had to give up their place for it.
        """
        grown, vacated = list[tuple[Sequence, int]](), list[int]()
        for sequence in list(self.running.values()):
            missing = self._missing(sequence, rounds) if sequence.decoding else 0
            while missing > self.pool.available and sequence.slot is not None:
                vacated.append(self._preempt())
            if missing > 0 and sequence.slot is not None:
                grown.append((sequence, len(sequence.pages)))
                sequence.pages += self.pool.take(missing)
        return [(sequence, had) for sequence, had in grown if sequence.slot is not None], vacated

    def is_short(self, rounds: int) -> bool:
        """Whether ``grow`` would have to preempt."""
        missing = (self._missing(s, rounds) for s in self.running.values() if s.decoding)
        return sum(max(count, 0) for count in missing) > self.pool.available

    def admit(self) -> list[Sequence]:
        """Move requests from the head of the queue into slots while slots and pages last."""
        admitted = []
        while self.waiting and self._slots and len(self.running) < self.relief.most:
            sequence = self.waiting[0]
            shared = self._find(sequence)
            for page in shared:
                self.pool.share(page)
            needed = _pages(len(sequence.tokens) + self.tree_rows) - len(shared)
            # a page for everybody who runs, so that a newcomer is not sent back at once
            if needed + len(self.running) > self.pool.available and (self.running or needed > self.pool.available):
                self.pool.drop(shared)
                break
            self.waiting.popleft()
            self._start(sequence, shared, self.pool.take(needed))
            admitted.append(sequence)
        return admitted

    def prefill(self, rows: int) -> list[PrefillChunk]:
        """What to prefill with ``rows`` rows, oldest request first."""
        chunks = []
        for sequence in self.running.values():
            count = min(sequence.to_prefill, rows)
            if count > 0:
                chunks.append(PrefillChunk(sequence, sequence.computed, count))
                rows -= count
        return chunks

    def prefilling(self) -> list[Sequence]:
        return [sequence for sequence in self.running.values() if sequence.to_prefill]

    def decoding(self) -> list[Sequence]:
        return [sequence for sequence in self.running.values() if sequence.decoding]

    def publish(self, sequence: Sequence) -> None:
        """Tell the pool what full pages of ``sequence`` have been computed."""
        full = sequence.computed // PAGE
        if not (self.reuse and sequence.request.reuse) or full <= sequence.published:
            return
        keys = sequence.keys.upto(sequence.tokens, full)
        for number in range(sequence.published, full):
            self.pool.publish(sequence.pages[number], keys[number])
        sequence.published = full

    def release(self, request_id: str) -> int | None:
        """Forget a request wherever it is; returns its slot if it ran, None if it only waited or is unknown."""
        sequence = self.running.pop(request_id, None)
        if sequence is None:
            self.waiting = deque(s for s in self.waiting if s.request.request_id != request_id)
            return None
        return self._vacate(sequence)

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self.running),
            waiting=len(self.waiting),
            pages_used=self.pool.used,
            pages_total=self.pool.total,
            pages_kept=self.pool.kept,
            preemptions=self.preemptions,
            prompt_tokens=self.prompt_tokens,
            reused_tokens=self.reused_tokens,
            out_of_memory=self.relief.failures,
            passes=self.tally.stats(),
        )

    def vacate_all(self) -> list[int]:
        """Send everybody who runs back to the head of the queue, in order; returns their slots."""
        return [self._preempt() for _ in range(len(self.running))]

    def check_integrity(self) -> None:
        """Slots are held once each and pages as the pool knows, by running requests only; else ``AssertionError``."""
        self.pool.check_integrity(sequence.pages for sequence in self.running.values())
        held = [sequence.slot for sequence in self.running.values()]
        if None in held or len(set(held) | set(self._slots)) != len(held) + len(self._slots):
            raise AssertionError("a slot is held twice, or by nobody that runs")
        if any(sequence.slot is not None or sequence.pages for sequence in self.waiting):
            raise AssertionError("a request that waits holds something")

    def _missing(self, sequence: Sequence, rounds: int) -> int:
        reach = min(len(sequence.tokens) + (rounds - 1) * self.tree_rows, sequence.limit) + self.tree_rows
        return _pages(reach) - len(sequence.pages)

    def _find(self, sequence: Sequence) -> list[int]:
        """Pages that hold the beginning of ``sequence`` already; its newest token is computed in any case."""
        found: list[int] = []
        if self.reuse and sequence.request.reuse:
            for key in sequence.keys.upto(sequence.tokens, (len(sequence.tokens) - 1) // PAGE):
                page = self.pool.find(key)
                if page is None:
                    break
                found.append(page)
        return found

    def _start(self, sequence: Sequence, shared: list[int], fresh: list[int]) -> None:
        sequence.slot = self._slots.pop(0)
        sequence.pages = shared + fresh
        sequence.computed = len(shared) * PAGE
        sequence.published = len(shared)
        if sequence.begun is None:
            sequence.begun, sequence.reused = time.perf_counter(), sequence.computed
            self.prompt_tokens += len(sequence.request.prompt)
            self.reused_tokens += sequence.reused
        self.running[sequence.request.request_id] = sequence

    def _preempt(self) -> int:
        """Send the youngest that runs back to the head of the queue; it is older than all that wait."""
        _, sequence = self.running.popitem()
        self.preemptions += 1
        self.waiting.appendleft(sequence)
        return self._vacate(sequence)

    def _vacate(self, sequence: Sequence) -> int:
        slot = sequence.running_slot
        self.pool.drop(sequence.pages)
        insort(self._slots, slot)
        sequence.slot, sequence.pages = None, []
        sequence.computed = sequence.published = 0
        return slot


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE)
