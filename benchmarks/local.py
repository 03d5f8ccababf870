"""Decoders over one engine in this process: same weights, same kernels, only the drafter differs.

What is timed begins with the engine's ``submit`` and ends when the last token has reached the host: prefill counts,
chat template and tokenising do not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from redraft.benchmarks.measure import Ask, Message, Reply
from redraft.drafts.base import Drafter
from redraft.server.engine.engine import Engine
from redraft.server.engine.types import RedraftError, Request, SamplingParams

if TYPE_CHECKING:
    from redraft.server.text import TextTokenizer

_numbers = count()


@dataclass(frozen=True, slots=True)
class Decoded:
    """What came of one prompt."""

    tokens: tuple[int, ...]
    seconds: float
    rounds: tuple[int, ...]
    """How many rounds committed 1, 2, 3 ... tokens."""


def decode(engine: Engine, drafter: Drafter, prompt: Sequence[int], params: SamplingParams) -> Decoded:
    """Decode ``prompt`` alone with ``drafter`` on an idle engine; raises ``RedraftError`` when it cannot run."""
    if engine.busy:
        raise RuntimeError("drafters may be exchanged only while the engine is idle")
    engine.drafter = drafter
    request = Request(f"benchmark-{next(_numbers)}", tuple(prompt), params)
    tokens: list[int] = []
    rounds: list[int] = []
    finished = False
    started = time.perf_counter()
    engine.submit(request)
    try:
        while not finished:
            for output in engine.step().outputs:
                if output.error is not None:
                    raise RedraftError(output.error)
                tokens += output.tokens
                rounds.append(len(output.tokens))
                finished = output.finish_reason is not None
        seconds = time.perf_counter() - started
    finally:
        engine.cancel(request.request_id)
    # rounds that were launched before the end was known
    while engine.busy:
        engine.step()
    return Decoded(tuple(tokens), seconds, tuple(rounds.count(n) for n in range(1, max(rounds) + 1)))


@dataclass(frozen=True, slots=True)
class EngineDecoder:
    """Answers chat messages with ``drafter``."""

    engine: Engine
    drafter: Drafter
    tokenizer: TextTokenizer

    def answer(self, messages: Sequence[Message], ask: Ask) -> Reply:
        """The assistant's next turn."""
        template = self.tokenizer.chat_template
        if template is None:
            raise RedraftError(f"{self.engine.info.target} has no chat template; measure a target that has one")
        # the template writes the special tokens itself
        prompt = self.tokenizer.encode(template.render(messages), special_tokens=False)
        params = SamplingParams(max_tokens=ask.max_tokens, temperature=ask.temperature, seed=ask.seed)
        decoded = decode(self.engine, self.drafter, prompt, params)
        text = self.tokenizer.decode(decoded.tokens)
        return Reply(decoded.seconds, len(decoded.tokens), decoded.tokens, text, decoded.rounds)
