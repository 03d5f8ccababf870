"""Who is inside: how many choices the server takes on, how long a request may go on, and who is still to be answered.

Everything here runs on the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Protocol

from redraft.server.errors import ApiError, invalid, unavailable
from redraft.server.metrics import Metrics
from redraft.server.settings import ServerSettings


class Limit(StrEnum):
    """Limits that refuse or end requests, as ``redraft_limits_hit_total`` names them."""

    MAX_QUEUE = "max_queue"
    REQUEST_TIMEOUT = "request_timeout"
    SLOW_READER = "slow_reader"
    DRAIN_SECONDS = "drain_seconds"


class Guest(Protocol):
    """A request that was let in."""

    def fail(self, error: ApiError) -> None:
        """End with ``error``; does nothing once everything was made."""


class Admission:
    """Counts choices, and knows the requests that they belong to.

    A choice that is not being decoded waits.  The engine alone knows which do, and tells only after the next pass, so
    what is bounded is their number: ``slots`` that are decoded at once and ``max_queue`` more.
    """

    def __init__(self, metrics: Metrics, settings: ServerSettings) -> None:
        self._metrics = metrics
        metrics.announce_limits(limit.value for limit in Limit)
        self._max_queue = settings.max_queue
        self._timeout = settings.request_timeout
        self._choices = 0
        self._guests: dict[Guest, asyncio.TimerHandle | None] = {}

    def check(self, choices: int, slots: int) -> None:
        """400 when there is never room for so many ``choices``, 503 when there is none now."""
        most = slots + self._max_queue
        if choices > most:
            message = f"{choices} choices were asked for; this server takes {most} at once."
            raise invalid("n", message, "too_many_choices")
        if self._choices + choices > most:
            self.count(Limit.MAX_QUEUE)
            raise unavailable("Too many requests are waiting; try again later.", "queue_full")

    @asynccontextmanager
    async def preparing(self, slots: int) -> AsyncIterator[float]:
        """Count a request as one choice while its prompts are made, and let its time run; gives the time it came.

        Raises as ``check`` does, and 504 when that alone takes longer than a request may.
        """
        self.check(1, slots)
        self._choices += 1
        try:
            async with asyncio.timeout(self._timeout) as limit:
                yield asyncio.get_running_loop().time()
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._expired() from None
        finally:
            self._choices -= 1

    def enter(self, guest: Guest, choices: int, slots: int, since: float) -> None:
        """Let ``guest``, who came at ``since``, in with ``choices``, each of which ends with ``choice_ended``.

        Raises as ``check`` does.
        """
        self.check(choices, slots)
        self._choices += choices
        timer = None
        if self._timeout is not None:
            timer = asyncio.get_running_loop().call_at(since + self._timeout, self._expire, guest)
        self._guests[guest] = timer

    def choice_ended(self) -> None:
        """A choice of somebody who was let in takes no more room in the engine."""
        self._choices -= 1

    def leave(self, guest: Guest) -> None:
        """``guest`` was answered, or is gone; harmless when it was never in."""
        timer = self._guests.pop(guest, None)
        if timer is not None:
            timer.cancel()

    def end_all(self) -> int:
        """Tell everybody who is in that the server stops; returns how many that were."""
        for guest in self._guests:
            self.count(Limit.DRAIN_SECONDS)
            guest.fail(unavailable("The server is shutting down.", "draining"))
        return len(self._guests)

    def count(self, limit: Limit) -> None:
        """``limit`` refused or ended a request."""
        self._metrics.limit_hit(limit.value)

    def _expire(self, guest: Guest) -> None:
        guest.fail(self._expired())

    def _expired(self) -> ApiError:
        self.count(Limit.REQUEST_TIMEOUT)
        message = f"The request took longer than the {self._timeout:g} s that this server allows."
        return ApiError(504, message, code="request_timeout")
