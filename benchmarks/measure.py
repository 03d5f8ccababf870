"""Plain against speculative, interleaved: what is asked in which order, and what is kept of the answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from redraft.benchmarks.prompts import PromptFile, Turns

WARM_UP_TOKENS = 32
Message = dict[str, str]
"""``role`` and ``content``, as OpenAI's API has them."""


@dataclass(frozen=True, slots=True)
class Ask:
    """How an answer is to be decoded."""

    max_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer."""

    seconds: float
    """From sending the request to its last token, prefill included."""
    tokens: int
    units: tuple[Hashable, ...]
    """What parity and loops are judged by: token ids, or words where a server tells only text."""
    text: str
    rounds: tuple[int, ...] | None
    """How many rounds committed 1, 2, 3 ... tokens; None where the server does not tell."""


class Decoder(Protocol):
    """Something that answers: an engine in this process or a server."""

    def answer(self, messages: Sequence[Message], ask: Ask) -> Reply:
        """The assistant's next turn; raises ``RedraftError`` when it cannot be had."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One conversation's replies, turn by turn, both ways; ``plain`` is empty where plain decoding is not measured."""

    plain: tuple[Reply, ...]
    speculative: tuple[Reply, ...]


@dataclass(slots=True)
class FileRun:
    """All that was measured of one prompt file."""

    prompts: PromptFile
    passes: list[list[Pair]] = field(default_factory=list)


def measure(
    runs: Sequence[FileRun],
    plain: Decoder | None,
    speculative: Decoder,
    ask: Ask,
    repeat: int,
    advance: Callable[[int], None],
) -> None:
    """Fill ``runs`` with ``repeat`` passes over their files.

    Every conversation is decoded both ways in turn, and who goes first alternates, so that drift of the machine hits
    both alike.  What stands in ``runs`` is whole pairs, also when this is left by an exception.  ``advance`` is told of
    every conversation that is done.
    """
    first = runs[0].prompts.conversations[0][:1]
    for decoder in (plain, speculative):
        if decoder is not None:
            converse(decoder, first, Ask(min(WARM_UP_TOKENS, ask.max_tokens), ask.temperature, ask.seed))
    for number in range(repeat):
        for run in runs:
            pairs: list[Pair] = []
            run.passes.append(pairs)
            for place, turns in enumerate(run.prompts.conversations):
                asked = Ask(ask.max_tokens, ask.temperature, ask.seed + place)
                pairs.append(_pair(plain, speculative, turns, asked, plain_first=(place + number) % 2 == 0))
                advance(1)


def _pair(plain: Decoder | None, speculative: Decoder, turns: Turns, ask: Ask, *, plain_first: bool) -> Pair:
    if plain is None:
        return Pair((), converse(speculative, turns, ask))
    if plain_first:
        before = converse(plain, turns, ask)
        return Pair(before, converse(speculative, turns, ask))
    ahead = converse(speculative, turns, ask)
    return Pair(converse(plain, turns, ask), ahead)


def converse(decoder: Decoder, turns: Turns, ask: Ask) -> tuple[Reply, ...]:
    """Replies to ``turns`` in order; each turn follows on the decoder's own answers to those before."""
    messages: list[Message] = []
    replies = []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        reply = decoder.answer(messages, ask)
        messages.append({"role": "assistant", "content": reply.text})
        replies.append(reply)
    return tuple(replies)
