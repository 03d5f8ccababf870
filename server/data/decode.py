"""Many requests through one engine in this process, as they come."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from redraft.server.chat_template import ChatTemplate
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.progress import say
from redraft.server.engine.types import FinishReason, RedraftError, Request
from redraft.server.text import TextTokenizer

AHEAD = 2
"""Requests handed to the engine, in multiples of those that it decodes at once: its queue never runs dry."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A request and what came of it."""

    request: Request
    tokens: tuple[int, ...]
    finish_reason: FinishReason

    def text(self, tokenizer: TextTokenizer) -> str:
        """What was said, without the end of turn."""
        return tokenizer.decode(self.tokens[:-1] if self.finish_reason is FinishReason.STOP else self.tokens)


def decode(engine: Engine, requests: Iterable[Request], count: Callable[[int], None]) -> Generator[Decoded]:
    """Decode ``requests``, taken one by one as there is room; yields each as it ends, in no order.

    ``count`` is told how many tokens each step gave.  Closing the iterator early cancels what is running.
    """
    coming = iter(requests)
    running: dict[str, tuple[Request, list[int]]] = {}
    try:
        while True:
            for request in islice(coming, AHEAD * engine.info.max_num_seqs - len(running)):
                engine.submit(request)
                running[request.request_id] = request, []
            if not running:
                return
            outputs = engine.step().outputs
            count(sum(len(output.tokens) for output in outputs))
            for output in outputs:
                if output.error is not None:
                    raise RedraftError(output.error)
                request, tokens = running[output.request_id]
                tokens += output.tokens
                if output.finish_reason is not None:
                    del running[output.request_id]
                    yield Decoded(request, tuple(tokens), output.finish_reason)
    finally:
        for name in running:
            engine.cancel(name)


def chat_tokenizer(config: EngineConfig) -> tuple[TextTokenizer, ChatTemplate]:
    """The target's tokenizer and its chat template; raises ``RedraftError`` for a target without one."""
    tokenizer = TextTokenizer.from_folder(Path(config.target))
    if tokenizer.chat_template is None:
        raise RedraftError(
            f"{config.target_name} has no chat template, so it can hold no conversation; take a target that has"
        )
    return tokenizer, tokenizer.chat_template


def start_engine(config: EngineConfig, fingerprints: set[str], out: Path) -> Engine:
    """Load the engine; raises ``RedraftError`` if it is not of the class that made the rows of ``out``.

    ``fingerprints``: those of the rows that are there.
    """
    engine = build_engine(config)
    for note in engine.info.notes:
        say(note)
    if others := fingerprints - {engine.info.fingerprint}:
        raise RedraftError(
            f"{out} was begun as {min(others)}, this would be {engine.info.fingerprint}: another --dtype or --device, "
            "kind of machine, or version of redraft or torch, any of which can change what the target says; continue "
            "where it was begun, or give another --out"
        )
    return engine
