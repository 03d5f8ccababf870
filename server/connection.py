"""Connections that wait for nobody: uvicorn's HTTP/1.1 over h11, with an end to slow heads and to unwanted bodies.

uvicorn bounds neither, and answers what is no HTTP in plain text.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from redraft.server.errors import ApiError
from redraft.server.head import FIELDS_TOO_LARGE, head_too_large
from redraft.server.limits import HEAD_SECONDS, LINGER_SECONDS


class Connection(H11Protocol):
    """One connection; every answer that it gives by itself closes it."""

    _head_timer: asyncio.TimerHandle | None = None
    """Runs while the connection waits for a request."""
    _linger_timer: asyncio.TimerHandle | None = None
    """Runs while a body is read whose request was answered."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected, and shall begin."""
        super().connection_made(transport)
        self._set_timers()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        super().connection_lost(exc)
        self._set_timers()

    def handle_events(self) -> None:
        """Act on what has arrived."""
        super().handle_events()
        self._set_timers()

    def on_response_complete(self) -> None:
        """A request was answered, whether its body has come or not."""
        super().on_response_complete()
        self._set_timers()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or too much of it, in the form of every other error."""
        hint = getattr(sys.exception(), "error_status_hint", 400)
        self._answer(head_too_large() if hint == FIELDS_TOO_LARGE else ApiError(400, msg, code="invalid_http"))

    def _set_timers(self) -> None:
        state = None if self.transport.is_closing() else self.conn.their_state
        self._head_timer = self._timer(self._head_timer, state is h11.IDLE, HEAD_SECONDS, self._head_is_late)
        unwanted = state is h11.SEND_BODY and self.conn.our_state is h11.DONE
        self._linger_timer = self._timer(self._linger_timer, unwanted, LINGER_SECONDS, self.transport.close)

    def _timer(
        self, timer: asyncio.TimerHandle | None, wanted: bool, seconds: float, act: Callable[[], None]
    ) -> asyncio.TimerHandle | None:
        """``timer`` if it is wanted, started if it does not run yet."""
        if timer is not None and not wanted:
            timer.cancel()
            return None
        return self.loop.call_later(seconds, act) if wanted and timer is None else timer

    def _head_is_late(self) -> None:
        """Whoever has sent nothing needs no answer."""
        begun, _ = self.conn.trailing_data
        if begun:
            self._answer(ApiError(408, f"The request's head did not arrive within {HEAD_SECONDS:g} s."))
        else:
            self.transport.close()

    def _answer(self, error: ApiError) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = error.reply.model_dump_json().encode()
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            for event in (h11.Response(status_code=error.status_code, headers=headers), h11.Data(data=body)):
                self.transport.write(self.conn.send(event))
            self.transport.write(self.conn.send(h11.EndOfMessage()))
        if self.cycle is not None and not self.cycle.response_complete:
            # what the app still says finds nobody
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
