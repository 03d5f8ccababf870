"""Tool calls written as JSON objects: ``{"name": ..., "arguments": {...}}``.

Hermes and Qwen put each between ``<tool_call>`` and ``</tool_call>``; Llama 3 answers with nothing but the object (its
key is ``parameters``), or several with ``;`` between them, and may put ``<|python_tag|>`` before it.

Arguments stream as the model writes them once the name is known and an object of arguments opens; calls in another
order are read when their object is complete.  The client gets the model's own JSON, which, as with every model, may be
cut off or not fit the tool's schema.
"""

from __future__ import annotations

import json
import re

from pydantic_core import from_json

from redraft.server.limits import MAX_HELD_CALL
from redraft.server.output.calls import CallParser, Schemas

KEYS = frozenset({"type", "function", "name", "arguments", "parameters"})
"""What the object of a call may begin with."""
FIRST_KEY = re.compile(r'\{\s*(?:"([^"\\]*)("?))?')
NAME = re.compile(r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"([^"\\]*)"')
ARGUMENTS = re.compile(NAME.pattern + r'\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
MARKS = re.compile(r'["\\{}]')


class Braces:
    """Finds the end of a JSON object that arrives in pieces; braces inside of strings do not count."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> int | None:
        """Where in ``text`` the object ends; None when it goes on."""
        at = 1 if self._escaped and text else 0
        self._escaped = self._escaped and not text
        while mark := MARKS.search(text, at):
            at = mark.end()
            if mark[0] == '"':
                self._in_string = not self._in_string
            elif mark[0] == "\\":
                self._escaped = at == len(text)
                at += 1
            elif not self._in_string:
                self._depth += 1 if mark[0] == "{" else -1
                if self._depth == 0:
                    return at
        return None


class JsonCalls(CallParser):
    """Hermes' and Qwen's calls."""

    marker = "<tool_call>"
    closer = "</tool_call>"

    def __init__(self, tools: Schemas, *, most: int | None = None) -> None:
        """See ``CallParser``."""
        super().__init__(tools, most=most)
        self._braces, self._scanned = Braces(), 0

    def _opening(self) -> bool:
        text = self._rest()
        if not text:
            return text is None and self._refuse()
        end = self._scan(text)
        named, opened = NAME.match(text), ARGUMENTS.match(text)
        if _hopeless(text) or (named and named[1] not in self._tools):
            return self._refuse()
        if opened and opened.end() < MAX_HELD_CALL:
            self._begin(opened[1])
            self._held = text[opened.end() :]
            self._forget()
            self._state = self._arguments
            return True
        if (end or len(text)) > MAX_HELD_CALL:
            return self._refuse()
        return end is not None and self._whole(text, end)

    def _scan(self, text: str) -> int | None:
        """The end of the object in ``text``, of which all but the newest was looked at before."""
        fresh = text[self._scanned :]
        end = self._braces.feed(fresh)
        self._scanned = len(text)
        return None if end is None else self._scanned - len(fresh) + end

    def _whole(self, text: str, end: int) -> bool:
        """A complete object."""
        call = _read(text[:end])
        if call is None or call[0] not in self._tools:
            return self._refuse()
        self._begin(call[0])
        self._more(call[1])
        self._held = text[end:]
        self._forget()
        return self._end(self.closer)

    def _arguments(self) -> bool:
        """Inside the object of the arguments."""
        end = self._braces.feed(self._held)
        part = self._held[:end]
        self._more(part)
        self._held = self._held[len(part) :]
        if end is None:
            return False
        self._forget()
        return self._end("}", self.closer)

    def _refuse(self) -> bool:
        self._forget()
        return super()._refuse()

    def _forget(self) -> None:
        self._braces, self._scanned = Braces(), 0


class LlamaCalls(JsonCalls):
    """Llama 3's calls; an object without the tag is one only where a reply begins, or behind another."""

    marker = "<|python_tag|>"
    closer = ""

    def _start(self) -> bool:
        return self._object_behind("")

    def _after(self) -> bool:
        return self._object_behind(";")

    def _object_behind(self, mark: str) -> bool:
        """Look for an object behind ``mark``."""
        rest = self._rest()
        if rest == "":
            return False
        if rest is not None and rest[0] == (mark or "{"):
            cut = len(self._held) - len(rest) + len(mark)
            self._raw, self._held = self._held[:cut], self._held[cut:]
            self._state = self._opening
        else:
            self._state = self._outside
        return True


def _hopeless(text: str) -> bool:
    """Whether ``text``, which is not empty, begins as no object of a call does."""
    first = FIRST_KEY.match(text)
    if first is None:
        return True
    goes_on = first.end() < len(text)
    key, quote = first.groups()
    if key is None:
        return goes_on
    if quote:
        return key not in KEYS
    return goes_on or not any(known.startswith(key) for known in KEYS)


def _read(text: str) -> tuple[str, str] | None:
    """Name and arguments, both as text, of the call in ``text``; None for an object that is none."""
    try:
        call = from_json(text, allow_inf_nan=False)
        call = call["function"] if isinstance(call.get("function"), dict) else call
        arguments = call.get("arguments", call.get("parameters")) or {}
        object_of = from_json(arguments, allow_inf_nan=False) if isinstance(arguments, str) else arguments
    except ValueError:
        return None
    if not isinstance(call.get("name"), str) or not isinstance(object_of, dict):
        return None
    return call["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
