"""One choice: the engine's rounds become text, until the engine, a stop string or the client ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from redraft.server.detokenize import Detokenizer
from redraft.server.engine.client import EngineClient
from redraft.server.engine.types import FinishReason, RedraftError, Request, RoundOutput
from redraft.server.errors import ApiError, unavailable
from redraft.server.record import ChoiceRecord
from redraft.server.replies import Finish
from redraft.server.rounds import Round, RoundWriter
from redraft.server.stops import StopStrings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new of one choice."""

    index: int
    text: str
    finish_reason: Finish | None = None
    """Set with the choice's last delta."""
    rounds: tuple[Round, ...] = ()
    """What it came of, if the client asked."""


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
        rounds: RoundWriter | None = None,
    ) -> None:
        """``record`` starts the choice's clock; ``end_tokens`` end the text and show none themselves.

        ``rounds``: given where the client wants to see them.
        """
        self.index = index
        self._request = request
        self._detokenizer = detokenizer
        self._stops = stops
        self._end_tokens = end_tokens
        self._made = 0
        """Tokens so far."""
        self._rounds = rounds
        self._pieces: list[str] = []
        """Texts of the newest round's tokens."""
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
            text = self._take(output)
            if self._stops.matched:
                emit(Delta(self.index, text, "stop", self._shown_round(output)))
                return FinishReason.STOP
            if output.finish_reason is None:
                if text or self._rounds is not None:
                    emit(Delta(self.index, text, None, self._shown_round(output)))
                continue
            tail = self._detokenizer.finish()
            text += self._shown(tail)
            text += self._stops.finish()
            finish = "stop" if self._stops.matched else _finish(engine, output)
            emit(Delta(self.index, text, finish, self._shown_round(output, tail)))
            return FinishReason(finish)
        raise unavailable("The engine stopped before the reply was complete.", "engine_failed")

    def _take(self, output: RoundOutput) -> str:
        """Text that ``output`` adds; counts its tokens up to a stop string's last."""
        text = ""
        self._pieces = []
        for token in output.tokens:
            self._made += 1
            piece = "" if token in self._end_tokens else self._detokenizer.push(token)
            self._pieces.append(piece)
            text += self._shown(piece)
            if self._stops.matched:
                break
        self.record.took(len(self._pieces))
        return text

    def _shown_round(self, output: RoundOutput, tail: str = "") -> tuple[Round, ...]:
        """The newest round, if rounds are shown; ``tail`` is what was kept back of its text."""
        if self._rounds is None or not self._pieces:
            return ()
        self._pieces[-1] += tail
        return (self._rounds.write(output, self._pieces, self.record.seconds),)

    def _shown(self, piece: str) -> str:
        """What of ``piece`` is certain to be shown; text of the tokens that had to be made holds no stop string."""
        return piece if self._made <= self._request.params.min_tokens else self._stops.push(piece)


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
