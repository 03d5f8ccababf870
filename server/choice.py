"""One choice: the engine's rounds become text, until the engine, a stop string or the client ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from itertools import zip_longest

import structlog

from redraft.server.detokenize import Detokenizer
from redraft.server.engine.client import EngineClient
from redraft.server.engine.types import FinishReason, RedraftError, Request, RoundOutput, TokenLogprobs
from redraft.server.errors import ApiError, unavailable
from redraft.server.output.piece import CallDelta
from redraft.server.output.reader import OutputReader
from redraft.server.record import ChoiceRecord
from redraft.server.replies import Finish
from redraft.server.scored import ScoredToken, ScoredTokens
from redraft.server.stops import StopStrings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new of one choice."""

    index: int
    text: str
    finish_reason: Finish | None = None
    """Set with the choice's last delta."""
    scored: tuple[ScoredToken, ...] = ()
    """The tokens that begin in ``text``, if their log-probabilities were asked for."""
    prompt: tuple[TokenLogprobs, ...] = ()
    """With the choice's first delta, if asked for: of the prompt's tokens, all but the first."""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    tokens: int = 0
    """Of the choice up to this delta."""
    reasoning_tokens: int | None = None
    """Of ``tokens``, those of the reasoning; None where that is not told apart."""

    @property
    def tells(self) -> bool:
        """Whether it tells the client anything, its end aside."""
        return bool(self.text or self.reasoning or self.calls or self.scored or self.prompt)


class Choice:
    """One choice of a reply."""

    def __init__(
        self,
        index: int,
        request: Request,
        detokenizer: Detokenizer,
        stops: StopStrings,
        end_tokens: frozenset[int],
        record: Callable[[], ChoiceRecord],
        reader: OutputReader | None = None,
    ) -> None:
        """``record`` starts the choice's clock; ``end_tokens`` end the text and show none themselves.

        ``reader`` finds reasoning and tool calls in the text; without one, all of it is text.
        """
        self.index = index
        self._request = request
        self._detokenizer = detokenizer
        self._stops = stops
        self._end_tokens = end_tokens
        self._made = 0
        """Tokens so far."""
        self._scored = ScoredTokens()
        self._prompt: tuple[TokenLogprobs, ...] = ()
        """What is to be told of the prompt with the next delta."""
        self._reader = reader
        self.record = record()

    async def run(self, engine: EngineClient, emit: Callable[[Delta], None]) -> None:
        """Decode to the end; cancelling this cancels the engine's request."""
        reason = FinishReason.ERROR
        try:
            async with aclosing(engine.generate(self._request)) as outputs:
                reason = await self._follow(engine, outputs, emit)
        except asyncio.CancelledError:
            reason = FinishReason.CANCELLED
            raise
        except RedraftError as error:
            raise _failed(engine, str(error)) from error
        finally:
            self.record.finished(reason)

    async def _follow(
        self, engine: EngineClient, outputs: AsyncGenerator[RoundOutput, None], emit: Callable[[Delta], None]
    ) -> FinishReason:
        async for output in outputs:
            self.record.arrived(output)
            self._prompt = self._prompt or output.prompt_logprobs
            text = self._take(output)
            if self._complete:
                emit(self._delta(text, "stop"))
                return FinishReason.STOP
            if output.finish_reason is None:
                # made only where there is text: what waits to be told is told with text
                delta = self._delta(text) if text else None
                if delta is not None and delta.tells:
                    emit(delta)
                continue
            rest = self._shown(self._detokenizer.finish()) + self._stops.finish()
            if self._reader is not None:
                self._reader.push(rest)
            finish = "stop" if self._stops.matched else _finish(engine, output)
            emit(self._delta(text + rest, finish))
            return FinishReason(finish)
        raise unavailable("The engine stopped before the reply was complete.", "engine_failed")

    @property
    def mean_logprob(self) -> float:
        """Log-probability a token, if the engine was asked for it."""
        return self._scored.mean

    def _delta(self, text: str, finish: Finish | None = None) -> Delta:
        """What is new of the choice, where ``text`` is new; ``finish`` as far as tool calls do not change it."""
        is_all = finish is not None and not self._stops.matched
        prompt, self._prompt = self._prompt, ()
        scored = self._scored.shown(text, all_of_it=is_all)
        if self._reader is None:
            return Delta(self.index, text, finish, scored, prompt, tokens=self.record.tokens)
        if finish is not None:
            self._reader.finish()
        new = self._reader.take()
        return Delta(
            self.index,
            new.text,
            "tool_calls" if finish == "stop" and self._reader.called else finish,
            scored,
            prompt,
            new.reasoning,
            new.calls,
            self.record.tokens,
            self._reader.reasoning_tokens,
        )

    def _take(self, output: RoundOutput) -> str:
        """Text that ``output`` adds, shown to the reader; counts its tokens up to the one that completes the reply."""
        text = ""
        taken = 0
        for token, scores in zip_longest(output.tokens, output.logprobs):
            taken += 1
            self._made += 1
            self._scored.count(scores)
            settled = "" if token in self._end_tokens else self._detokenizer.push(token)
            if token not in self._end_tokens:
                self._scored.push(token, settled, scores)
            piece = self._shown(settled)
            text += piece
            if self._reader is not None:
                self._reader.push(piece)
                self._reader.took(len(settled))
            if self._complete:
                break
        self.record.took(taken)
        return text

    def _shown(self, piece: str) -> str:
        """What of ``piece`` is certain to be shown; text of the tokens that had to be made holds no stop string."""
        return piece if self._made <= self._request.params.min_tokens else self._stops.push(piece)

    @property
    def _complete(self) -> bool:
        """Whether the reply ends here, whatever the engine goes on with."""
        return self._stops.matched or (self._reader is not None and self._reader.ended)


def _finish(engine: EngineClient, output: RoundOutput) -> Finish:
    """The engine's word for the end, where it is one for the client; otherwise an error."""
    match output.finish_reason:
        case FinishReason.STOP:
            return "stop"
        case FinishReason.LENGTH:
            return "length"
        case FinishReason.CANCELLED:
            raise unavailable("The server is shutting down.", "cancelled")
        case _:
            raise _failed(engine, output.error)


def _failed(engine: EngineClient, error: str | None) -> ApiError:
    """What the client is told: why a living engine refused the request, and no more than that of one that ended."""
    log.error("engine failed", error=error)
    if engine.alive:
        return ApiError(500, f"The engine failed: {error}", code="engine_error")
    return unavailable("The engine has ended; the server must be restarted.", "engine_failed")
