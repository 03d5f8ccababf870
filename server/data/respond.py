"""``redraft data respond``: the target answers prompt files, ids and all.

Drafts are trained on what their target says, token by token.  Text encoded again is not what was said: the tokenizer
may split a word in another way than the target wrote it.  So rows keep the exact ids.

A row's seed follows from ``--seed`` and from which row it is, not from when it was made, and the engine's output does
not depend on what runs beside it; so a run that was interrupted ends with the rows of one that was not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from redraft.server.chat_template import ChatTemplate, ChatTemplateError
from redraft.server.data.decode import Decoded, chat_tokenizer, decode, start_engine
from redraft.server.data.meter import Meter, metered
from redraft.server.data.prompt_files import PromptLine
from redraft.server.data.row_file import ELSEWHERE, open_rows
from redraft.server.data.rows import ResponseRow, row_seed
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.progress import say
from redraft.server.engine.types import RedraftError, Request, SamplingParams
from redraft.server.text import TextTokenizer

NAMED = 3
"""Skipped prompts that are named."""

Key = tuple[str, str, float, int]
"""Source, prompt, temperature and sample: which row it is."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides the answers, besides prompts and target."""

    max_tokens: int = 512
    temperatures: tuple[float, ...] = (0.0,)
    seed: int = 0
    samples: int = 1
    """Answers to each prompt at each temperature above 0; at 0 they would all be the same, so there is one."""


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to be had."""

    prompt: PromptLine
    temperature: float
    sample: int
    seed: int


def plan(prompts: Sequence[PromptLine], settings: Settings) -> dict[Key, Job]:
    """All rows that the command stands for.  A prompt that comes again is answered again, by further samples."""
    jobs: dict[Key, Job] = {}
    seen: Counter[tuple[str, str]] = Counter()
    for prompt in prompts:
        before = seen[prompt.source, prompt.text]
        seen[prompt.source, prompt.text] += 1
        for temperature in settings.temperatures:
            samples = settings.samples if temperature > 0 else 1
            for sample in range(before * samples, (before + 1) * samples):
                key = (prompt.source, prompt.text, temperature, sample)
                jobs[key] = Job(prompt, temperature, sample, row_seed(settings.seed, *key))
    return jobs


class Ledger:
    """What is left to do, once the rows that are there were taken off."""

    def __init__(self, jobs: dict[Key, Job], target_sha: str, max_tokens: int) -> None:
        self.left = dict(jobs)
        self.fingerprints: set[str] = set()
        self._jobs = jobs
        self._target_sha = target_sha
        self._max_tokens = max_tokens

    def take(self, place: str, row: ResponseRow) -> None:
        """Take ``row`` off; raises ``RedraftError`` if it is not one that the command would write."""
        key = (row.source, row.prompt, row.temperature, row.sample)
        job = self._jobs.get(key)
        if row.target != self._target_sha:
            fault = f"the answer of another target ({row.target[:12]}, this one is {self._target_sha[:12]})"
        elif row.max_tokens != self._max_tokens:
            fault = f"made with --max-tokens {row.max_tokens}, not {self._max_tokens}"
        elif job is None:
            what = f"sample {row.sample} at temperature {row.temperature} of a prompt"
            fault = f"{what}, for which this command does not ask"
        elif row.seed != job.seed:
            fault = "made with another --seed"
        elif key not in self.left:
            fault = "a second answer where one is asked for"
        else:
            del self.left[key]
            self.fingerprints.add(row.fingerprint)
            return
        raise RedraftError(f"{place}: {fault}; {ELSEWHERE}")


def respond(config: EngineConfig, prompts: Sequence[PromptLine], out: Path, settings: Settings) -> None:
    """Append to ``out`` what it lacks of the answers to ``prompts``; raises ``RedraftError`` when that cannot be."""
    tokenizer, template = chat_tokenizer(config)
    jobs = plan(prompts, settings)
    ledger = Ledger(jobs, config.target_sha, settings.max_tokens)
    with open_rows(out, ResponseRow, ledger.take) as rows:
        todo = list(ledger.left.values())
        if not todo:
            say(f"{out} is complete: {len(jobs)} rows")
            return
        engine = start_engine(config, ledger.fingerprints, out)
        feed = Feed(todo, tokenizer, template, settings.max_tokens, engine.info.max_model_len)
        with metered("Answering", len(jobs), len(jobs) - len(todo)) as meter:
            for decoded in decode(engine, feed.requests(meter), meter.add_tokens):
                job = todo[int(decoded.request.request_id)]
                rows.append(_row(job, decoded, decoded.text(tokenizer), config.target_sha, engine.info.fingerprint))
                meter.add_rows()
        skipped = len(feed.skipped)
        say(
            f"{out}: {len(todo) - skipped} rows added, {len(jobs) - skipped} of {len(jobs)} in all; "
            f"{meter.tokens} tokens in {meter.seconds:.1f} s, {meter.rate:.1f} tokens/s"
        )
        feed.report()


class Feed:
    """Makes requests of jobs, one at a time, and remembers which could not be made."""

    def __init__(
        self, jobs: Sequence[Job], tokenizer: TextTokenizer, template: ChatTemplate, max_tokens: int, context: int
    ) -> None:
        """``context``: tokens of prompt and answer together.  Raises ``RedraftError`` if answers alone fill it."""
        if max_tokens >= context:
            raise RedraftError(f"--max-tokens {max_tokens} leaves no room for a prompt in {context} tokens; lower it")
        self.skipped: list[Job] = []
        self._jobs = jobs
        self._tokenizer = tokenizer
        self._template = template
        self._max_tokens = max_tokens
        self._room = context - max_tokens

    def requests(self, meter: Meter) -> Iterator[Request]:
        """A request for each job, named by its number; ``meter`` is told of those that are skipped.

        A prompt must leave room for ``max_tokens``: otherwise the length of the context, which may differ from machine
        to machine, would decide where an answer ends.
        """
        for number, job in enumerate(self._jobs):
            try:
                text = self._template.render([{"role": "user", "content": job.prompt.text}])
            except ChatTemplateError as error:
                raise RedraftError(f"{job.prompt.place}: {error}; take the line out") from error
            # the template writes the special tokens itself
            ids = self._tokenizer.encode(text, special_tokens=False)
            if len(ids) > self._room:
                self.skipped.append(job)
                meter.add_rows()
            else:
                params = SamplingParams(max_tokens=self._max_tokens, temperature=job.temperature, seed=job.seed)
                yield Request(str(number), ids, params)

    def report(self) -> None:
        """Say what was skipped, if anything was."""
        places = list(dict.fromkeys(job.prompt.place for job in self.skipped))
        if places:
            more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
            say(
                f"warning: {len(places)} of the prompts skipped, longer than the {self._room} tokens that --max-tokens "
                f"{self._max_tokens} leaves: {', '.join(places[:NAMED])}{more}"
            )


def _row(job: Job, decoded: Decoded, response: str, target_sha: str, fingerprint: str) -> ResponseRow:
    return ResponseRow(
        source=job.prompt.source,
        prompt=job.prompt.text,
        prompt_ids=decoded.request.prompt,
        response=response,
        response_ids=decoded.tokens,
        finish_reason="stop" if decoded.finish_reason == "stop" else "length",
        temperature=job.temperature,
        sample=job.sample,
        seed=job.seed,
        max_tokens=decoded.request.params.max_tokens,
        target=target_sha,
        fingerprint=fingerprint,
    )
