"""Decoders over one engine in this process: same weights, same kernels, only the drafter differs.

What is timed begins with the engine's ``submit`` and ends when the last token has reached the host: prefill counts,
chat template and tokenising do not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from redraft.benchmarks.measure import Ask, Message, Reply
from redraft.drafts.base import Drafter
from redraft.server.engine.engine import Engine
from redraft.server.engine.types import RedraftError, Request, SamplingParams

if TYPE_CHECKING:
    from redraft.server.text import TextTokenizer

_numbers = count()


@dataclass(slots=True)
class Decoded:
    """What came of one prompt."""

    tokens: list[int] = field(default_factory=list)
    committed: list[int] = field(default_factory=list)
    """Tokens of each round."""
    seconds: float = 0.0
    """From the submission of the first prompt to this one's last token."""
    request_id: str = ""
    """What the engine knew it by."""

    @property
    def rounds(self) -> tuple[int, ...]:
        """How many rounds committed 1, 2, 3 ... tokens."""
        return tuple(self.committed.count(n) for n in range(1, max(self.committed, default=0) + 1))


def decode(engine: Engine, drafter: Drafter, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Decoded]:
    """Decode ``prompts`` together with ``drafter`` on an idle engine, in slots 0, 1 ... as far as there are slots.

    Raises ``RedraftError`` when a prompt cannot run.
    """
    if engine.busy:
        raise RuntimeError("drafters may be exchanged only while the engine is idle")
    engine.drafter = drafter
    names = [f"benchmark-{next(_numbers)}" for _ in prompts]
    found = {name: Decoded(request_id=name) for name in names}
    unfinished = set(found)
    started = time.perf_counter()
    try:
        for name, prompt in zip(found, prompts, strict=True):
            engine.submit(Request(name, tuple(prompt), params, reuse=False))  # passes must not help each other
        while unfinished:
            for output in engine.step().outputs:
                if output.error is not None:
                    raise RedraftError(output.error)
                one = found[output.request_id]
                one.tokens += output.tokens
                one.committed.append(len(output.tokens))
                if output.finish_reason is not None:
                    one.seconds = time.perf_counter() - started
                    unfinished.remove(output.request_id)
    finally:
        for name in unfinished:
            engine.cancel(name)
    # rounds that were launched before the end was known
    while engine.busy:
        engine.step()
    return list(found.values())


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
        (decoded,) = decode(self.engine, self.drafter, [prompt], params)
        text = self.tokenizer.decode(decoded.tokens)
        return Reply(decoded.seconds, len(decoded.tokens), tuple(decoded.tokens), text, decoded.rounds)
