"""A request on its way through the engine.  Torch-free."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from redraft.server.engine.grammar import Matcher
from redraft.server.engine.prefix import PageKeys
from redraft.server.engine.types import Request


@dataclass(slots=True, eq=False)
class Sequence:
    """One request's text, and what it holds while it runs; it waits when ``slot`` is None."""

    request: Request
    limit: int
    """Tokens at which it ends, prompt included."""
    keys: PageKeys
    tokens: list[int]
    """Prompt and committed tokens, as far as the host has heard of them."""
    slot: int | None = None
    pages: list[int] = field(default_factory=list)
    computed: int = 0
    """Positions whose KV is in the pages; the newest token's comes with its round."""
    reused: int = 0
    """Of the prompt, how much was found computed when it was first admitted."""
    published: int = 0
    """Pages whose keys the pool was told."""
    queued: float = field(default_factory=time.perf_counter)
    """When it was submitted, in seconds of ``perf_counter``."""
    begun: float | None = None
    """When it was first admitted, in seconds of ``perf_counter``."""
    matcher: Matcher | None = None
    """Its grammar, at the end of ``tokens``."""
    forced: int = 0
    """Tokens of the round under way that its grammar drafted."""
    prompt_seconds: float | None = None
    """What the prefill of its prompt took, queueing not counted."""

    @property
    def queue_seconds(self) -> float:
        """How long it waited to be admitted."""
        return 0.0 if self.begun is None else self.begun - self.queued

    @property
    def running_slot(self) -> int:
        """The slot of a sequence that runs."""
        if self.slot is None:
            raise RuntimeError(f"{self.request.request_id} waits")
        return self.slot

    @property
    def to_prefill(self) -> int:
        """Tokens that still need their KV before the newest can be an anchor."""
        return len(self.tokens) - 1 - self.computed

    @property
    def decoding(self) -> bool:
        return self.slot is not None and self.to_prefill == 0

    def prefilled(self, count: int) -> None:
        """``count`` more positions have their KV."""
        self.computed += count

    def committed(self, tokens: list[int]) -> None:
        """A round committed ``tokens``, and with them the KV of all but the last."""
        self.tokens += tokens
        self.computed = len(self.tokens) - 1
