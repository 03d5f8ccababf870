"""``redraft bench speed``: sets up the two decoders, measures, and writes what came of it.

Whatever ends a run early (ctrl-c, a server that goes away), what was measured until then is printed and written, marked
incomplete.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from redraft.benchmarks.measure import Ask, Decoder, FileRun, measure
from redraft.benchmarks.prompts import PromptFile
from redraft.benchmarks.report import figures, table
from redraft.benchmarks.stamp import stamp
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.progress import progress
from redraft.server.engine.types import RedraftError

INTERRUPTED = 130
"""Exit code after ctrl-c, as shells have it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured, apart from where."""

    max_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    repeat: int = 1
    limit: int | None = None
    multi_turn: bool = False


@dataclass(frozen=True, slots=True)
class Sinks:
    """Where the JSON goes besides stdout."""

    json_file: Path | None = None
    results: Path | None = None
    """Folder whose ``speed.jsonl`` gets one more line."""

    def prepare(self) -> None:
        """Fail before an hour of measuring, not after it."""
        try:
            if self.results is not None:
                self.results.mkdir(parents=True, exist_ok=True)
                (self.results / "speed.jsonl").touch()
            if self.json_file is not None:
                self.json_file.touch()
        except OSError as error:
            raise RedraftError(f"cannot write {error.filename} ({error.strerror}); choose another place") from error

    def write(self, line: str) -> None:
        if self.json_file is not None:
            self.json_file.write_text(line + "\n")
        if self.results is not None:
            with (self.results / "speed.jsonl").open("a") as file:
                file.write(line + "\n")


@dataclass(frozen=True, slots=True)
class Contest:
    """The decoders of a run and what is to be said of them."""

    plain: Decoder | None
    speculative: Decoder
    engine: dict[str, Any]
    gpu: str | None = None


@contextmanager
def engine_contest(config: EngineConfig) -> Iterator[Contest]:
    """One engine in this process, its drafter against none."""
    import torch

    from redraft.benchmarks.local import EngineDecoder
    from redraft.drafts.none import NoDrafter
    from redraft.server.engine.load import build_engine
    from redraft.server.text import TextTokenizer

    tokenizer = TextTokenizer.from_folder(Path(config.target))
    engine = build_engine(config)
    info = asdict(engine.info)
    kept = ("target", "draft", "device", "dtype", "max_nodes", "fingerprint", "notes")
    yield Contest(
        EngineDecoder(engine, NoDrafter(), tokenizer),
        EngineDecoder(engine, engine.drafter, tokenizer),
        {name: info[name] for name in kept} | {"target_sha": config.target_sha, "threads": torch.get_num_threads()},
        torch.cuda.get_device_name() if engine.info.device == "cuda" else None,
    )


@contextmanager
def server_contest(url: str, plain_url: str | None, model: str | None, api_key: str | None) -> Iterator[Contest]:
    """Servers that run already."""
    from redraft.benchmarks.openai_client import OpenAIServer

    with ExitStack() as stack:
        server = stack.enter_context(OpenAIServer(url, model, api_key))
        plain = stack.enter_context(OpenAIServer(plain_url, model, api_key)) if plain_url else None
        yield Contest(plain, server, {"url": url, "plain_url": plain_url, "model": server.model})


def run(
    contest: Contest, files: Sequence[PromptFile], settings: Settings, sinks: Sinks, command: Sequence[str]
) -> None:
    """Measure, print the table and, last, one line of JSON.

    Raises ``RedraftError`` and ``KeyboardInterrupt`` on, after printing what was measured before them.
    """
    runs = [FileRun(prompts) for prompts in files]
    error: BaseException | None = None
    try:
        _measure(contest, runs, settings)
    except (RedraftError, KeyboardInterrupt) as caught:
        error = caught
    report = {
        "benchmark": "speed",
        "complete": error is None,
        "error": str(error) or type(error).__name__ if error else None,
        **stamp(command, contest.gpu),
        "engine": contest.engine,
        "settings": asdict(settings),
        "files": [found for one in runs if (found := figures(one)) is not None],
    }
    if report["files"]:
        print(table(report["files"]))
    if error:
        print("incomplete: stopped before the end")
    line = json.dumps(report, ensure_ascii=False)
    sinks.write(line)
    print(line, flush=True)
    if error:
        raise error


def _measure(contest: Contest, runs: Sequence[FileRun], settings: Settings) -> None:
    ask = Ask(settings.max_tokens, settings.temperature, settings.seed)
    total = settings.repeat * sum(len(one.prompts.conversations) for one in runs)
    with progress(f"Measuring {', '.join(one.prompts.name for one in runs)}", total) as advance:
        measure(runs, contest.plain, contest.speculative, ask, settings.repeat, advance)
