"""``redraft bench load``: measures level by level, then prints and writes what came of it.

Whatever ends a run early (ctrl-c, a server that goes away), what was measured until then is printed and written, marked
incomplete.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from redraft.benchmarks.cost_energy import EnergyMeter
from redraft.benchmarks.load_contest import Contest
from redraft.benchmarks.load_figures import level_figures
from redraft.benchmarks.load_plan import Level, arrivals, jobs
from redraft.benchmarks.load_run import LevelRun, measure_level
from redraft.benchmarks.load_table import table
from redraft.benchmarks.measure import Ask
from redraft.benchmarks.stamp import stamp
from redraft.server.engine.progress import progress, say
from redraft.server.engine.types import RedraftError


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked at every level."""

    max_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    repeat: int = 2
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Sinks:
    """Where JSON and picture go besides stdout."""

    json_file: Path | None = None
    results: Path | None = None
    """Folder whose ``load.jsonl`` gets one more line."""
    png: Path | None = None
    """By default beside ``json_file``, or in ``results`` under the date."""

    def prepare(self) -> None:
        """Fail before an hour of measuring, not after it."""
        if self.json_file is not None and self.picture("") == self.json_file:
            raise RedraftError(f"JSON and picture would both go to {self.json_file}; give --png another name")
        try:
            if self.results is not None:
                self.results.mkdir(parents=True, exist_ok=True)
                (self.results / "load.jsonl").touch()
            for file in (self.json_file, self.png):
                if file is not None:
                    file.touch()
        except OSError as error:
            raise RedraftError(f"cannot write {error.filename} ({error.strerror}); choose another place") from error

    def picture(self, date: str) -> Path | None:
        """Where the picture goes; None for nowhere."""
        if self.png is not None:
            return self.png
        if self.json_file is not None:
            return self.json_file.with_suffix(".png")
        return self.results / f"load-{date[:19].replace(':', '')}.png" if self.results is not None else None

    def write(self, line: str) -> None:
        """Write and append the line of JSON."""
        if self.json_file is not None:
            self.json_file.write_text(line + "\n")
        if self.results is not None:
            with (self.results / "load.jsonl").open("a") as file:
                file.write(line + "\n")


@dataclass(slots=True)
class Bench:
    """A run as far as it has come."""

    contest: Contest | None = None
    runs: list[LevelRun] = field(default_factory=list)


def run(
    opening: AbstractAsyncContextManager[Contest],
    prompts: Sequence[str],
    levels: Sequence[Level],
    settings: Settings,
    sinks: Sinks,
    command: Sequence[str],
) -> None:
    """Measure, print the table and, last, one line of JSON; draw the picture.

    Raises ``RedraftError`` and ``KeyboardInterrupt`` on, after printing what was measured before them.
    """
    bench = Bench()
    error: BaseException | None = None
    try:
        asyncio.run(_measure(bench, opening, prompts, levels, settings))
    except (RedraftError, KeyboardInterrupt) as caught:
        if bench.contest is None:
            raise
        error = caught
    assert bench.contest is not None
    report = {
        "benchmark": "load",
        "complete": error is None,
        "error": str(error) or type(error).__name__ if error else None,
        **stamp(command, bench.contest.gpu),
        "engine": bench.contest.facts(),
        "settings": asdict(settings) | {"prompts": len(prompts)},
        "levels": [found for one in bench.runs if (found := level_figures(one)) is not None],
    }
    if report["levels"]:
        print(table(report["levels"]))
    if error:
        print("incomplete: stopped before the end")
    line = json.dumps(report, ensure_ascii=False)
    sinks.write(line)
    print(line, flush=True)
    _picture(report, bench.contest, sinks)
    if error:
        raise error


async def _measure(
    bench: Bench,
    opening: AbstractAsyncContextManager[Contest],
    prompts: Sequence[str],
    levels: Sequence[Level],
    settings: Settings,
) -> None:
    ask = Ask(settings.max_tokens, settings.temperature, settings.seed)
    async with opening as contest:
        bench.contest = contest
        # of a server, the power is not this machine's to tell
        meter = EnergyMeter if contest.gpu else None
        for level in levels:
            run = LevelRun(level, {side: [] for side in contest.clients})
            bench.runs.append(run)
            asked = jobs(prompts, level.requests, ask)
            times = arrivals(level.rate, level.requests, settings.seed) if level.rate is not None else None
            total = level.requests * settings.repeat * len(contest.clients)
            with progress(f"{level.name}, {level.requests} requests", total) as advance:
                await measure_level(run, contest.clients, asked, times, settings.repeat, advance, meter)


def _picture(report: dict[str, Any], contest: Contest, sinks: Sinks) -> None:
    path = sinks.picture(report["date"])
    if path is None or not report["levels"]:
        return
    from redraft.benchmarks.load_plot import draw

    machine = report["machine"]
    # of a server, only the client's machine is known
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    facts = [f"Draft {contest.draft}", where] if contest.draft else []
    title = f"{contest.target}: throughput against latency"
    draw(report["levels"], title, ", ".join([*facts, report["date"][:10]]), path)
    say(f"wrote {path}")
