"""A checkpoint's chat template, rendered in Jinja's sandbox.

transformers can do this too, but importing it loads torch, which the server process must not.  The environment is what
templates on the hub are written for: trimmed blocks, ``raise_exception``, ``strftime_now``, ``tojson`` without HTML
escapes, loop controls and the ``generation`` block, which marks the assistant's text for training and renders as is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from redraft.server.engine.types import RedraftError


class ChatTemplateError(RedraftError):
    """The template does not take these messages; the message says why."""


class _Generation(Extension):
    tags = {"generation"}  # noqa: RUF012 (Jinja declares it as an instance variable)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The block's statements, unchanged."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """One template, compiled."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile ``source``; ``special_tokens`` are its variables (``bos_token`` and so on)."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise RedraftError(f"The target's chat template is broken: {error}") from None
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for the assistant's next turn; raises ``ChatTemplateError`` when the template refuses."""
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                # none, but known: templates written for transformers tell that from undefined
                tools=None,
                documents=None,
                **self._special_tokens,
            )
        # a template is a program of its own: what it raises for odd messages can be anything
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ChatTemplateError(f"the chat template does not take these messages: {reason}") from error


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
