"""Tool calls of Qwen3-Coder: ``<tool_call><function=NAME><parameter=KEY>VALUE</parameter>...</function></tool_call>``.

Values are plain text between line breaks.  They become JSON by the tool's schema: text where it says string or knows
nothing of the parameter, otherwise what the value is as JSON, or text if it is none.  Arguments stream by parameters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from redraft.server.limits import MAX_NAME_CHARS
from redraft.server.output.calls import CallParser, Schemas

FUNCTION = "<function="
PARAMETER = "<parameter="
PARAMETER_END = "</parameter>"
FUNCTION_END = "</function>"
PYTHON = {"True": True, "False": False, "None": None}
"""Values that models trained on Python write."""


class XmlCalls(CallParser):
    """Qwen3-Coder's calls."""

    marker = "<tool_call>"
    closer = "</tool_call>"

    def __init__(self, tools: Schemas, *, most: int | None = None) -> None:
        """See ``CallParser``."""
        super().__init__(tools, most=most)
        self._properties: Mapping[str, Any] = {}
        self._filled = False
        self._pieces: list[str] = []

    def _opening(self) -> bool:
        rest = self._rest()
        if rest is None or not rest.startswith(FUNCTION):
            return False if rest is not None and FUNCTION.startswith(rest) else self._refuse()
        name, found, behind = rest[len(FUNCTION) :].partition(">")
        if not found:
            return False if len(name) <= MAX_NAME_CHARS else self._refuse()
        if name not in self._tools:
            return self._refuse()
        self._begin(name)
        properties = self._tools[name].get("properties")
        self._properties = properties if isinstance(properties, dict) else {}
        self._filled = False
        self._held = behind
        self._state = self._parameters
        return True

    def _parameters(self) -> bool:
        """Inside a function's tags."""
        rest = self._rest()
        if rest is None:
            # a call that lacks its end
            return self._close(self._held)
        if rest.startswith(PARAMETER):
            self._held = rest[len(PARAMETER) :]
            self._state = self._value
            return True
        if any(tag.startswith(rest) and tag != rest for tag in (PARAMETER, FUNCTION_END)):
            return False
        # anything else than the end is text behind a call that lacks its end
        return self._close(rest.removeprefix(FUNCTION_END))

    def _value(self) -> bool:
        """Inside a parameter's tags.  What has been looked at is put aside: a value may be a long file."""
        head, found, behind = self._held.partition(PARAMETER_END)
        if not found:
            cut = max(len(self._held) - len(PARAMETER_END) + 1, 0)
            self._pieces.append(self._held[:cut])
            self._held = self._held[cut:]
            return False
        name, _, value = "".join((*self._pieces, head)).partition(">")
        self._pieces.clear()
        self._parameter(name, value)
        self._held = behind
        self._state = self._parameters
        return True

    def _close(self, behind: str) -> bool:
        """The call is complete, whatever ``behind`` is."""
        self._held = behind
        self._more("}" if self._filled else "{}")
        return self._end(self.closer)

    def _parameter(self, name: str, value: str) -> None:
        text = value.removeprefix("\n").removesuffix("\n")
        pair = f"{json.dumps(name, ensure_ascii=False)}: {_json(text, self._properties.get(name))}"
        self._more((", " if self._filled else "{") + pair)
        self._filled = True


def _json(text: str, schema: Any) -> str:
    """``text`` as JSON of the kind that ``schema`` asks for."""
    if isinstance(schema, dict) and schema.get("type") != "string":
        try:
            value = PYTHON[text] if text in PYTHON else from_json(text, allow_inf_nan=False)
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        except ValueError:
            pass
    return json.dumps(text, ensure_ascii=False)
