"""Which tags and which kind of tool calls a model writes: by its chat template, unless the operator says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

from redraft.server.output.calls import CallParser
from redraft.server.output.json_calls import JsonCalls, LlamaCalls
from redraft.server.output.reasoning import TAGS, Tags, tags_of
from redraft.server.output.xml_calls import XmlCalls

CALLS: Mapping[str, type[CallParser]] = MappingProxyType(
    {"hermes": JsonCalls, "llama3": LlamaCalls, "qwen3_coder": XmlCalls}
)
"""By the names that ``--tool-parser`` takes."""


@dataclass(frozen=True, slots=True)
class OutputFormats:
    """How a model writes what is not plain text; None: not at all, or in no way known here."""

    tags: Tags | None = None
    calls: type[CallParser] | None = None

    @classmethod
    def of(cls, template: str, reasoning: str = "auto", tools: str = "auto") -> Self:
        """``reasoning`` and ``tools`` are ``auto``, ``none`` or a name in ``TAGS`` and in ``CALLS``."""
        tags = tags_of(template) if reasoning == "auto" else TAGS.get(reasoning)
        return cls(tags, _calls_of(template) if tools == "auto" else CALLS.get(tools))


def _calls_of(template: str) -> type[CallParser] | None:
    """The format that a template asks its model to write, or in which it repeats earlier calls."""
    if JsonCalls.marker in template:
        return XmlCalls if "<function=" in template else JsonCalls
    # templates of Llama 3.1 to 3.3, of which some never write the tag
    if LlamaCalls.marker in template or ("ipython" in template and '"parameters"' in template):
        return LlamaCalls
    return None
