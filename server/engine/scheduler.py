"""Who runs: first come, first served, by slots and pages.  Torch-free.

A request gets a slot and all pages it can ever need when it is admitted, so nothing running can be starved of memory.
Its prompt, all but the last token, is prefilled in chunks; the last one is the anchor of its first round.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from redraft.server.engine.config import PAGE
from redraft.server.engine.pages import PagePool
from redraft.server.engine.types import EngineStats, Request


@dataclass(slots=True)
class Running:
    """A request that holds a slot."""

    request: Request
    slot: int
    pages: tuple[int, ...]
    prefilled: int = 0
    started: float = field(default_factory=time.perf_counter)
    prompt_seconds: float | None = None
    """Set when its prefill is complete, cleared when it has been reported."""

    @property
    def to_prefill(self) -> int:
        """Prompt tokens that still need their KV; the anchor's comes with its round."""
        return len(self.request.prompt) - 1 - self.prefilled

    @property
    def decoding(self) -> bool:
        return self.to_prefill == 0


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """``count`` prompt tokens of one request from position ``start``."""

    running: Running
    start: int
    count: int


class Scheduler:
    """Queue, slots and pages of one engine."""

    def __init__(self, slots: int, pages: int, max_model_len: int, tree_rows: int, prefill_chunk: int) -> None:
        """``tree_rows``: cells beyond the committed ones that a round may write for one request."""
        self.pool = PagePool(pages)
        self.max_model_len = max_model_len
        self.tree_rows = tree_rows
        self.prefill_chunk = prefill_chunk
        self.waiting: deque[Request] = deque()
        self.running: dict[str, Running] = {}
        self._slots = list(range(slots))

    def limit(self, request: Request) -> int:
        """Longest this request may become, in tokens."""
        return min(len(request.prompt) + request.params.max_tokens, self.max_model_len)

    def pages_for(self, request: Request) -> int:
        return -(-(self.limit(request) + self.tree_rows) // PAGE)

    def refusal(self, request: Request) -> str | None:
        """Why this request can never run, or None."""
        if request.request_id in self.running or any(r.request_id == request.request_id for r in self.waiting):
            return f"request id {request.request_id!r} is in use"
        if not request.prompt:
            return "the prompt is empty"
        if request.params.max_tokens < 1:
            return f"max_tokens must be at least 1, not {request.params.max_tokens}"
        if len(request.prompt) >= self.max_model_len:
            return f"the prompt has {len(request.prompt)} tokens; {self.max_model_len - 1} is the most that fits"
        if self.pages_for(request) > self.pool.total:
            return f"the request needs {self.pages_for(request)} KV pages; there are {self.pool.total}"
        return None

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def admit(self) -> list[Running]:
        """Move requests from the head of the queue into slots while slots and pages last."""
        admitted = []
        while self.waiting and self._slots and self.pages_for(self.waiting[0]) <= self.pool.free:
            request = self.waiting.popleft()
            pages = self.pool.allocate(request.request_id, self.pages_for(request))
            running = Running(request, self._slots.pop(0), pages)
            self.running[request.request_id] = running
            admitted.append(running)
        return admitted

    def next_chunk(self) -> PrefillChunk | None:
        """The next piece of prompt to prefill, oldest request first."""
        for running in self.running.values():
            if running.to_prefill:
                return PrefillChunk(running, running.prefilled, min(running.to_prefill, self.prefill_chunk))
        return None

    def decoding(self) -> list[Running]:
        return [running for running in self.running.values() if running.decoding]

    def release(self, request_id: str) -> Running | None:
        """Forget a request wherever it is; returns what it held, None if it only waited or is unknown."""
        running = self.running.pop(request_id, None)
        if running is None:
            self.waiting = deque(r for r in self.waiting if r.request_id != request_id)
            return None
        self.pool.release(request_id)
        self._slots.append(running.slot)
        self._slots.sort()
        return running

    def stats(self) -> EngineStats:
        return EngineStats(len(self.running), len(self.waiting), self.pool.used, self.pool.total)

    def check_integrity(self) -> None:
        """Slots and pages are held once each, by running requests only; raises ``AssertionError``."""
        self.pool.check_integrity()
        held = [running.slot for running in self.running.values()]
        if len(set(held) | set(self._slots)) != len(held) + len(self._slots):
            raise AssertionError("a slot is held twice")
        if not self.running and self.pool.used:
            raise AssertionError(f"{self.pool.used} pages are held by nobody")
