"""Reasoning that a model writes between tags, told from its answer while it comes.

A reply's reasoning is the block that it opens with, or that the chat template opened for it at the end of the prompt;
later tags are part of the answer.  Line breaks and spaces next to the tags belong to neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from redraft.server.limits import MAX_HELD_SPACES
from redraft.server.stops import settled


@dataclass(frozen=True, slots=True)
class Tags:
    """What stands before and after a model's reasoning."""

    open: str
    close: str

    def opened_by(self, text: str) -> bool:
        """Whether a reply that follows ``text`` begins inside a block that ``text`` left open."""
        return text.rstrip().endswith(self.open)

    def left_open(self, text: str) -> bool:
        """Whether ``text``, a reply so far, has a block that is not closed."""
        return text.rfind(self.open) > text.rfind(self.close)


TAGS: Mapping[str, Tags] = MappingProxyType(
    {
        # Qwen3, QwQ, DeepSeek-R1, SmolLM3, GLM and most others
        "think": Tags("<think>", "</think>"),
        # Magistral
        "mistral": Tags("[THINK]", "[/THINK]"),
        # Seed-OSS
        "seed": Tags("<seed:think>", "</seed:think>"),
    }
)
"""By the names that ``--reasoning-parser`` takes."""


def tags_of(template: str) -> Tags | None:
    """The tags of a model with this chat template; None where it mentions none."""
    # "</think>" is no end of "</seed:think>", so at most one kind is found
    return next((tags for tags in TAGS.values() if tags.close in template), None)


class ReasoningSplitter:
    """Splits one reply."""

    def __init__(self, tags: Tags, *, opened: bool) -> None:
        """``opened``: the prompt ends inside the block."""
        self.tags = tags
        self._held = ""
        self._seen = 0
        self._inside: Literal["before", "within", "behind"] = "within" if opened else "before"
        self._begun = False
        """Whether the part now read has shown anything: what comes before are spaces next to a tag."""
        self._bounded = opened
        """Whether the part now read began with a tag."""
        self.end: int | None = None
        """Characters of the reply up to the end of its reasoning, tags included: 0 where it has none, None as long as
        that is not known."""

    @property
    def open(self) -> bool:
        """Whether the text so far ends inside the reasoning."""
        return self._inside == "within"

    def push(self, text: str) -> tuple[str, str]:
        """What ``text`` settles: more of the reasoning, and more of the answer."""
        self._seen += len(text)
        self._held += text
        reasoning = answer = ""
        if self._inside == "before":
            self._open()
        if self._inside == "within":
            reasoning = self._within()
        if self._inside == "behind":
            answer, self._held = self._part(self._held), ""
        return reasoning, answer

    def finish(self) -> tuple[str, str]:
        """What was kept back, now that nothing follows."""
        held, self._held = self._part(self._held), ""
        if self.open:
            return held, ""
        self.end = self.end or 0
        return "", held

    def _open(self) -> None:
        """Leave ``before`` once the text cannot be a beginning of the tag any more, or is one."""
        text = self._held.lstrip()
        if text.startswith(self.tags.open) and len(self._held) - len(text) <= MAX_HELD_SPACES:
            self._inside, self._bounded = "within", True
            self._held = text[len(self.tags.open) :]
        elif not self.tags.open.startswith(text) or len(self._held) - len(text) > MAX_HELD_SPACES:
            self._inside, self.end = "behind", 0

    def _within(self) -> str:
        at = self._held.find(self.tags.close)
        if at >= 0:
            text = self._part(self._held[: settled(self._held[:at], "")])
            self._held = self._held[at + len(self.tags.close) :]
            self._inside, self._bounded, self._begun = "behind", True, False
            self.end = self._seen - len(self._held)
            return text
        cut = settled(self._held, self.tags.close)
        text, self._held = self._held[:cut], self._held[cut:]
        return self._part(text)

    def _part(self, text: str) -> str:
        if self._bounded and not self._begun:
            text = text.lstrip()
        self._begun = self._begun or bool(text)
        return text
