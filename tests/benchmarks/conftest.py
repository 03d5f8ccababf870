"""What the benchmarks' tests share: a tiny target with a tokenizer, a file of prompts, decoders that need no model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from redraft.benchmarks.measure import Ask, Message, Reply
from redraft.benchmarks.tiny import make_tiny_target

QUESTIONS = (["Repeat a b c a b c a b c.", "Again, please."], ["What is two and two?"], ["Name a colour."])


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """All of them."""


@pytest.fixture(scope="session")
def tiny_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_target(tmp_path_factory.mktemp("targets") / "tiny", tokenizer=True)


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    """Three conversations, the first with two turns."""
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"turns": turns}) + "\n" for turns in QUESTIONS))
    return path


class FakeDecoder:
    """Answers at once and remembers in which order it and its siblings were asked."""

    def __init__(self, name: str, log: list[tuple[str, tuple[Message, ...], Ask]], stop_at: int | None = None) -> None:
        """Raises ``KeyboardInterrupt`` instead of the ``stop_at``-th answer."""
        self.name, self.log, self.stop_at = name, log, stop_at
        self.asked = 0

    def answer(self, messages: Sequence[Message], ask: Ask) -> Reply:
        self.asked += 1
        if self.asked == self.stop_at:
            raise KeyboardInterrupt
        self.log.append((self.name, tuple(messages), ask))
        return Reply(2.0, 4, (1, 2, 3, 4), f"answer {self.asked}", (0, 2))


@pytest.fixture
def fake_decoder() -> Callable[..., FakeDecoder]:
    return FakeDecoder
