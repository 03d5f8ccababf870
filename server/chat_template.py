"""A checkpoint's chat template, rendered in Jinja's sandbox.

transformers can do this too, but importing it loads torch, which the server process must not.  The environment is what
templates on the hub are written for: trimmed blocks, ``raise_exception``, ``strftime_now``, ``tojson`` without HTML
escapes, loop controls and the ``generation`` block, which marks the assistant's text for training and renders as is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from redraft.server.engine.types import RedraftError
from redraft.server.limits import MAX_RENDERED_CHARS

Message = Mapping[str, Any]
"""One turn as templates read it: ``role``, ``content``, and for tools ``tool_calls``, ``tool_call_id`` and ``name``."""
FINAL_MARK = "\ue000final message\ue001 "
"""Put behind the final message to find its end; private characters, and a space to tell whether it was trimmed."""


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """What a template is told besides messages."""

    add_generation_prompt: bool = True
    """End with the opening of the assistant's turn."""
    continue_final_message: bool = False
    """End within the last message, for the assistant to go on with it."""
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables, such as ``enable_thinking``."""


class ChatTemplateError(RedraftError):
    """The template does not take these messages; the message says why."""


class _Generation(Extension):
    tags = {"generation"}  # noqa: RUF012 (Jinja declares it as an instance variable)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The block's statements, unchanged."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """One template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Read ``source``; ``special_tokens`` are its variables (``bos_token`` and so on)."""
        self.source = source
        self.special_tokens = dict(special_tokens)
        self._environment = _environment()
        try:
            tree = self._environment.parse(source)
            self.variables = frozenset(meta.find_undeclared_variables(tree))
        except TemplateError as error:
            raise RedraftError(f"The target's chat template is broken: {error}") from None
        self._compiled: Template | None = None

    @property
    def knows_tools(self) -> bool:
        """Whether the template does anything with tools."""
        return "tools" in self.variables

    def render(self, messages: Sequence[Message], options: RenderOptions | None = None) -> str:
        """The prompt for the assistant's next turn; raises ``ChatTemplateError`` when the template refuses."""
        options = options or RenderOptions()
        turns = [dict(message) for message in messages]
        if options.continue_final_message:
            turns[-1]["content"] += FINAL_MARK
        try:
            if self._compiled is None:
                # not before it is needed: the server has another process do this (template_process.py)
                self._compiled = self._environment.from_string(self.source)
            text = _bounded(
                self._compiled.generate(
                    # none, but known: templates written for transformers tell that from undefined
                    {"documents": None, **self.special_tokens, **options.variables},
                    messages=turns,
                    tools=options.tools,
                    add_generation_prompt=options.add_generation_prompt,
                )
            )
        # a template is a program of its own: what it raises for odd messages can be anything
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ChatTemplateError(f"the chat template does not take these messages: {reason}") from error
        return _cut(text) if options.continue_final_message else text


def _environment() -> ImmutableSandboxedEnvironment:
    """What templates on the hub are written for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _bounded(parts: Iterable[str]) -> str:
    """``parts`` joined, unless they are endless."""
    taken, length = [], 0
    for part in parts:
        taken.append(part)
        length += len(part)
        if length > MAX_RENDERED_CHARS:
            raise ChatTemplateError(f"it made a prompt of more than {MAX_RENDERED_CHARS} characters")
    return "".join(taken)


def _cut(text: str) -> str:
    """``text`` up to the mark at the end of its last message; as transformers does it."""
    # a template may trim contents, and the mark's space with it
    cut = text.rfind(FINAL_MARK.strip())
    if cut < 0:
        raise ChatTemplateError("the chat template does not show the final message, so it cannot be continued")
    whole = text.startswith(FINAL_MARK, cut)
    return text[:cut] if whole else text[:cut].rstrip()


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
