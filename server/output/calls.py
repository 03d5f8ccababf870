"""Tool calls in a model's text: what all formats share.

A parser is a small machine over the text that it holds: each state takes what it can, and says whether another state
may go on.  What it decides depends on the text so far and never on the pieces it came in.  A call is told to the client
once its name is settled; what only looked like the beginning of a call comes out as text.  Spaces and line breaks
around calls belong to no text.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from redraft.server.limits import MAX_HELD_SPACES
from redraft.server.output.piece import CallDelta
from redraft.server.stops import settled

Schemas = Mapping[str, Mapping[str, Any]]
"""The tools that may be called, by name: the JSON schema of their arguments."""


class CallParser(ABC):
    """Reads the calls of one reply."""

    marker = ""
    """What a call opens with."""
    closer = ""
    """What a call ends with, if anything; a missing one is forgiven."""
    arguments_key: str | None = None
    """Of a call that is a JSON object of ``name`` and this; None for calls that are none."""
    before, after = "", ""
    """What stands around such an object where a model is held to a call."""
    separator: str | None = None
    """What stands between two of them; None where there is only one."""

    def __init__(self, tools: Schemas, *, most: int | None = None) -> None:
        """``most``: how many calls a reply may have; None for any number."""
        self._tools = tools
        self._most = most
        self._held = ""
        self._raw = ""
        """What was taken off ``_held`` for a call that is not settled yet."""
        self._text: list[str] = []
        self._deltas: list[CallDelta] = []
        self._expected: list[str] = []
        self._state: Callable[[], bool] = self._start
        self.begun = 0
        """Calls so far."""
        self.ended = False
        """Set once the reply has all the calls it may have: nothing that follows is taken."""

    def push(self, text: str) -> tuple[str, tuple[CallDelta, ...]]:
        """What ``text`` settles: text that belongs to no call, and what is new of calls."""
        self._held += text
        while self._state():
            pass
        return self._take()

    def finish(self) -> tuple[str, tuple[CallDelta, ...]]:
        """What was kept back, now that nothing follows."""
        if self._state == self._opening:
            self._text += [self._raw, self._held]
        elif self._state in (self._start, self._outside) and not (self.begun and self._held.isspace()):
            self._text.append(self._held)
        self._held = ""
        self._state = self._done
        return self._take()

    def _start(self) -> bool:
        """Before any text."""
        self._state = self._outside
        return True

    def _outside(self) -> bool:
        """Text, until the marker; spaces before a marker are kept back, for they may belong to a call."""
        at = self._held.find(self.marker)
        cut = settled(self._held, self.marker) if at < 0 else settled(self._held[:at], "")
        text = self._held[:cut]
        self._text.append(text)
        if at < 0:
            self._held = self._held[len(text) :]
            return False
        self._raw = self._held[len(text) : at + len(self.marker)]
        self._held = self._held[at + len(self.marker) :]
        self._state = self._opening
        return True

    @abstractmethod
    def _opening(self) -> bool:
        """Behind a marker: settle whether this is a call."""

    def _after(self) -> bool:
        """Behind a call."""
        self._state = self._outside
        return True

    def _closing(self) -> bool:
        """Behind a call's arguments."""
        while self._expected:
            rest = self._rest()
            if rest is None:
                break
            if rest.startswith(self._expected[0]):
                self._held = rest[len(self._expected[0]) :]
            elif any(closer.startswith(rest) and closer != rest for closer in self._expected):
                return False
            self._expected.pop(0)
        self._state = self._after
        return True

    def _rest(self) -> str | None:
        """What is held, without spaces before it; None where they are too many to belong to a call."""
        rest = self._held.lstrip()
        return rest if len(self._held) - len(rest) <= MAX_HELD_SPACES else None

    def _done(self) -> bool:
        self._held = ""
        return False

    def _refuse(self) -> bool:
        """No call after all: what was taken for its beginning is text."""
        self._text.append(self._raw)
        self._state = self._outside
        return True

    def _begin(self, name: str) -> None:
        self._deltas.append(CallDelta(self.begun, f"call_{uuid.uuid4().hex[:24]}", name))
        self.begun += 1

    def _more(self, arguments: str) -> None:
        if arguments:
            self._deltas.append(CallDelta(self.begun - 1, arguments=arguments))

    def _end(self, *closers: str) -> bool:
        """The newest call's arguments are complete; ``closers`` are still to come."""
        self.ended = self.begun == self._most
        self._expected = [closer for closer in closers if closer]
        self._state = self._done if self.ended else self._closing
        return True

    def _take(self) -> tuple[str, tuple[CallDelta, ...]]:
        text, calls = "".join(self._text), tuple(self._deltas)
        self._text.clear()
        self._deltas.clear()
        return text, calls
