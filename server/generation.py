"""The choices of one reply, decoded side by side and merged into one stream of deltas.

Each choice runs in a task of its own, and closing the generation cancels those tasks: that is how a client that went
away frees its requests at once, whether it streamed or not and whether they were queued or running.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from redraft.server.admission import Admission, Limit
from redraft.server.choice import Choice, Delta
from redraft.server.engine.client import EngineClient
from redraft.server.errors import ApiError, unavailable
from redraft.server.replies import CompletionTokensDetails, PromptTokensDetails, Usage


class Generation:
    """All choices of one reply."""

    def __init__(
        self,
        engine: EngineClient,
        admission: Admission,
        choices: Sequence[Choice],
        prompt_tokens: int,
        made: int,
        shown: int,
        since: float,
    ) -> None:
        """``choices``: ``made`` of each prompt, prompt by prompt, the best ``shown`` of which are shown.

        ``prompt_tokens``: of all prompts, each once; ``since``: when the request came, by the loop's clock.
        """
        self._engine = engine
        self._admission = admission
        self.choices = choices
        self._prompt_tokens = prompt_tokens
        self._made, self._shown = made, shown
        self._since = since
        self._events: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        self._running = len(choices)
        self._tasks: list[asyncio.Task[None]] = []
        self._newest: dict[int, Delta] = {}
        """By choice, what ``next`` returned last."""

    def start(self) -> None:
        """Submit every choice; 503 when too many wait already."""
        info = self._engine.info
        if info is None:
            raise unavailable("The model is still loading.", "loading")
        self._admission.enter(self, len(self.choices), info.max_num_seqs, self._since)
        self._tasks = [asyncio.create_task(self._pump(choice)) for choice in self.choices]
        for task in self._tasks:
            # not in the task: one that is cancelled before its first step runs no line of its own
            task.add_done_callback(lambda _: self._admission.choice_ended())

    def close(self) -> None:
        """Cancel what still runs, and be gone; harmless when nothing does."""
        self._cancel()
        self._admission.leave(self)

    def fail(self, error: ApiError) -> None:
        """Cancel what still runs; what was made is followed by ``error``."""
        self._cancel()
        self._events.put_nowait(error)

    def cut_off(self) -> None:
        """Cancel what still runs: the client has stopped reading."""
        self._admission.count(Limit.SLOW_READER)
        self._cancel()

    @property
    def pending(self) -> int:
        """Deltas that nobody has taken yet."""
        return self._events.qsize()

    async def next(self) -> Delta | None:
        """The next delta of any choice; None after the last.  A failed choice closes the others and raises."""
        if self._running == 0:
            return None
        event = await self._events.get()
        if isinstance(event, Exception):
            self._cancel()
            raise event
        if event.finish_reason is not None:
            self._running -= 1
        self._newest[event.index] = event
        return event

    def best(self, deltas: Sequence[Delta]) -> list[Delta]:
        """Of ``deltas``, one for all of each choice, those to show: by log-probability a token, ties as made."""
        if self._shown == self._made:
            return list(deltas)
        found = list[Delta]()
        for first in range(0, len(deltas), self._made):
            group = range(first, first + self._made)
            ranked = sorted(group, key=lambda number: -self.choices[number].mean_logprob)
            found += (deltas[number] for number in ranked[: self._shown])
        return [replace(delta, index=index) for index, delta in enumerate(found)]

    @property
    def usage(self) -> Usage:
        """Tokens of what ``next`` returned so far."""
        made = sum(delta.tokens for delta in self._newest.values())
        thought = [delta.reasoning_tokens for delta in self._newest.values() if delta.reasoning_tokens is not None]
        reused = [choice.record.reused for choice in self.choices]
        # a prompt counts once; what one of its choices computed was not there before, so the one that found least tells
        cached = sum(min(reused[first : first + self._made]) for first in range(0, len(reused), self._made))
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=made,
            total_tokens=self._prompt_tokens + made,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=sum(thought)) if thought else None,
        )

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _pump(self, choice: Choice) -> None:
        try:
            await choice.run(self._engine, self._events.put_nowait)
        except Exception as error:
            self._events.put_nowait(error)
