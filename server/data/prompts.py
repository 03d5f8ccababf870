"""``redraft data prompts``: the target writes user turns itself.

Given a conversation that breaks off where the user is about to speak, an instruction-tuned model continues with what it
expects a user to say (Magpie, arXiv:2406.08464).  Such prompts need no data set, and are of the kind the target knows.

Attempts are numbered, each with its own seed, and judged in their order whatever the order they end in; so an
interrupted run goes on with the file that an uninterrupted one would have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from redraft.server.chat_template import ChatTemplate
from redraft.server.data.decode import Decoded, chat_tokenizer, decode, start_engine
from redraft.server.data.meter import metered
from redraft.server.data.row_file import ELSEWHERE, open_rows
from redraft.server.data.rows import WrittenRow, row_seed
from redraft.server.detokenize import REPLACEMENT
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.progress import say
from redraft.server.engine.target.spec import read_spec
from redraft.server.engine.types import FinishReason, RedraftError, Request, SamplingParams
from redraft.server.text import TextTokenizer

SOURCE = "magpie"
MARKER = "Zq7marker"
"""Stands in for a user's words; no template says this by itself."""
PATIENCE = 1000
"""Attempts in a row that may be dropped before the run gives up."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides the prompts, besides the target."""

    count: int
    temperature: float = 1.0
    seed: int = 0
    max_tokens: int = 256


def opening(tokenizer: TextTokenizer, template: ChatTemplate, eos_token_ids: tuple[int, ...]) -> tuple[int, ...]:
    """Ids of a conversation up to where the user's words begin.

    Raises ``RedraftError`` for a template that does not show where they begin, or that does not end them by a token
    which ends generation.
    """
    before, *after = template.render([{"role": "user", "content": MARKER}]).split(MARKER)
    if not before or len(after) != 1:
        raise RedraftError("the target's chat template does not open a user's turn in one place; use prompt files")
    if not set(eos_token_ids) & set(tokenizer.encode(after[0], special_tokens=False)):
        raise RedraftError(
            "the target's chat template ends a user's turn without an end-of-turn token, so the target would not stop "
            "after it; use prompt files"
        )
    alone = tokenizer.encode(before, special_tokens=False)
    spoken = tokenizer.encode(before + MARKER + after[0], special_tokens=False)
    # a space at the end may belong to the first word: then it is the target's to write
    shared = next((i for i, pair in enumerate(zip(alone, spoken, strict=False)) if pair[0] != pair[1]), len(alone))
    return alone[:shared]


class Record:
    """What was kept so far, and what became of the attempts of this run."""

    def __init__(self, settings: Settings, target_sha: str) -> None:
        self.fates: Counter[str] = Counter()
        self.fingerprints: set[str] = set()
        self.next_attempt = 0
        self.dropped_in_a_row = 0
        self._texts: set[str] = set()
        self._settings = settings
        self._target_sha = target_sha

    @property
    def kept(self) -> int:
        return len(self._texts)

    def take(self, place: str, row: WrittenRow) -> None:
        """Take in a row that is there; raises ``RedraftError`` if it is not one that the command would write."""
        if row.target != self._target_sha:
            fault = f"written by another target ({row.target[:12]}, this one is {self._target_sha[:12]})"
        elif row.max_tokens != self._settings.max_tokens:
            fault = f"made with --max-tokens {row.max_tokens}, not {self._settings.max_tokens}"
        elif row.temperature != self._settings.temperature:
            fault = f"made with --temperature {row.temperature}, not {self._settings.temperature}"
        elif row.seed != self.seed(row.attempt):
            fault = "made with another --seed"
        elif row.attempt < self.next_attempt or row.turns[0] in self._texts:
            fault = "out of order or there twice"
        else:
            self._texts.add(row.turns[0])
            self.next_attempt = row.attempt + 1
            self.fingerprints.add(row.fingerprint)
            return
        raise RedraftError(f"{place}: {fault}; {ELSEWHERE}")

    def seed(self, attempt: int) -> int:
        """Of the attempt's own."""
        return row_seed(self._settings.seed, SOURCE, attempt)

    def judge(self, decoded: Decoded, tokenizer: TextTokenizer) -> str | None:
        """The prompt of the next attempt, or None if it is dropped."""
        text = decoded.text(tokenizer).strip()
        if decoded.finish_reason is not FinishReason.STOP:
            fate = "truncated"
        elif not text:
            fate = "empty"
        elif REPLACEMENT in text or any(tokenizer.skips(token) for token in decoded.tokens[:-1]):
            fate = "garbled"
        elif text in self._texts:
            fate = "duplicate"
        else:
            fate = "kept"
            self._texts.add(text)
        self.fates[fate] += 1
        self.next_attempt += 1
        self.dropped_in_a_row = 0 if fate == "kept" else self.dropped_in_a_row + 1
        return text if fate == "kept" else None

    def report(self) -> str:
        """How many attempts of this run met which fate."""
        fates = ", ".join(f"{self.fates[fate]} {fate}" for fate in ("empty", "truncated", "garbled", "duplicate"))
        return f"{self.fates['kept']} of {self.fates.total()} attempts kept ({fates})"


def write_prompts(config: EngineConfig, out: Path, settings: Settings) -> None:
    """Append prompts to ``out`` until it holds ``settings.count``; raises ``RedraftError`` when that cannot be."""
    if settings.temperature == 0:
        raise RedraftError("--temperature 0 writes the same prompt every time; give 1, say")
    tokenizer, template = chat_tokenizer(config)
    start = opening(tokenizer, template, read_spec(Path(config.target)).eos_token_ids)
    record = Record(settings, config.target_sha)
    with open_rows(out, WrittenRow, record.take) as rows:
        if record.kept >= settings.count:
            say(f"{out} is complete: {record.kept} prompts")
            return
        engine = start_engine(config, record.fingerprints, out)
        first = record.next_attempt
        with metered("Writing prompts", settings.count, record.kept) as meter:
            requests = _requests(start, settings, record, first)
            with closing(decode(engine, requests, meter.add_tokens)) as ended:
                for attempt, decoded in in_order(ended, first):
                    if text := record.judge(decoded, tokenizer):
                        rows.append(_row(text, attempt, decoded, config.target_sha, engine.info.fingerprint))
                        meter.add_rows()
                    if record.kept == settings.count:
                        break
                    if record.dropped_in_a_row == PATIENCE:
                        raise RedraftError(
                            f"gave up after {PATIENCE} attempts without a new prompt: {record.report()}; another "
                            "--temperature or a higher --max-tokens may help"
                        )
        say(
            f"{out}: {record.report()}, {record.kept} prompts in all; {meter.tokens} tokens in {meter.seconds:.1f} s, "
            f"{meter.rate:.1f} tokens/s"
        )


def in_order(ended: Iterator[Decoded], first: int) -> Iterator[tuple[int, Decoded]]:
    """Attempts by their numbers, from ``first`` on, each as soon as those before it have ended."""
    early: dict[int, Decoded] = {}
    due = first
    for decoded in ended:
        early[int(decoded.request.request_id)] = decoded
        while due in early:
            yield due, early.pop(due)
            due += 1


def _requests(start: tuple[int, ...], settings: Settings, record: Record, first: int) -> Iterator[Request]:
    for attempt in count(first):
        params = SamplingParams(settings.max_tokens, settings.temperature, seed=record.seed(attempt))
        yield Request(str(attempt), start, params)


def _row(text: str, attempt: int, decoded: Decoded, target_sha: str, fingerprint: str) -> WrittenRow:
    params = decoded.request.params
    return WrittenRow(
        source=SOURCE,
        turns=(text,),
        attempt=attempt,
        seed=params.seed,
        temperature=params.temperature,
        max_tokens=params.max_tokens,
        target=target_sha,
        fingerprint=fingerprint,
    )
