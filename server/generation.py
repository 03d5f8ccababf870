"""The choices of one reply, decoded side by side and merged into one stream of deltas.

Each choice runs in a task of its own, and closing the generation cancels those tasks: that is how a client that went
away frees its requests at once, whether it streamed or not and whether they were queued or running.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from redraft.server.choice import Choice, Delta
from redraft.server.engine.client import EngineClient
from redraft.server.replies import CompletionTokensDetails, PromptTokensDetails, Usage


class Generation:
    """All choices of one reply."""

    def __init__(self, engine: EngineClient, choices: Sequence[Choice], prompt_tokens: int, n: int) -> None:
        """``choices``: ``n`` of each prompt, prompt by prompt; ``prompt_tokens``: of all prompts, each once."""
        self._engine = engine
        self.choices = choices
        self._prompt_tokens = prompt_tokens
        self._n = n
        self._events: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        self._running = len(choices)
        self._tasks: list[asyncio.Task[None]] = []
        self._newest: dict[int, Delta] = {}
        """By choice, what ``next`` returned last."""

    def start(self) -> None:
        """Submit every choice."""
        self._tasks = [asyncio.create_task(self._pump(choice)) for choice in self.choices]

    def close(self) -> None:
        """Cancel what still runs; harmless when nothing does."""
        for task in self._tasks:
            task.cancel()

    async def next(self) -> Delta | None:
        """The next delta of any choice; None after the last.  A failed choice closes the others and raises."""
        if self._running == 0:
            return None
        event = await self._events.get()
        if isinstance(event, Exception):
            self.close()
            raise event
        if event.finish_reason is not None:
            self._running -= 1
        self._newest[event.index] = event
        return event

    @property
    def usage(self) -> Usage:
        """Tokens of what ``next`` returned so far."""
        made = sum(delta.tokens for delta in self._newest.values())
        thought = [delta.reasoning_tokens for delta in self._newest.values() if delta.reasoning_tokens is not None]
        reused = [choice.record.reused for choice in self.choices]
        # a prompt counts once; what one of its choices computed was not there before, so the one that found least tells
        cached = sum(min(reused[first : first + self._n]) for first in range(0, len(reused), self._n))
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=made,
            total_tokens=self._prompt_tokens + made,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=sum(thought)) if thought else None,
        )

    async def _pump(self, choice: Choice) -> None:
        try:
            await choice.run(self._engine, self._events.put_nowait)
        except Exception as error:
            self._events.put_nowait(error)
