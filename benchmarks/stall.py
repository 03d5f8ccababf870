"""``redraft bench stall``: what a long prompt does to streams that run, and what a reused prefix saves.

Streams decode; after a while a long prompt comes in; how long the gaps between their events are before and meanwhile is
compared.  Then the time to the first token of a prompt is taken twice, the second time with its beginning at hand.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from redraft.benchmarks.stamp import stamp
from redraft.server.engine.config import PAGE, EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.types import RedraftError, Request, SamplingParams

QUIET = 40
"""Events of every stream before the long prompt comes, and as many after it was read."""
ENDLESS = 1 << 20
_numbers = count()


@dataclass(frozen=True, slots=True)
class Stall:
    """Gaps between events of running streams, in seconds; one gap a stream and step that brought it tokens."""

    alone: tuple[float, ...]
    beside: tuple[float, ...]
    """While the prompt was being prefilled."""
    prefill_seconds: float
    alone_tokens: int
    beside_tokens: int

    def figures(self) -> dict[str, Any]:
        """p50 and p99 of the gaps, and the streams' tokens per second."""
        ways = (("alone", self.alone, self.alone_tokens), ("beside", self.beside, self.beside_tokens))
        found: dict[str, Any] = {"prefill_seconds": self.prefill_seconds}
        for name, gaps, tokens in ways:
            cuts = quantiles(gaps, n=100, method="inclusive")
            found[name] = {"gap_p50": median(gaps), "gap_p99": cuts[98], "tokens_per_gap": tokens / len(gaps)}
        found["p99_ratio"] = found["beside"]["gap_p99"] / found["alone"]["gap_p99"]
        return found


def stall(engine: Engine, streams: Sequence[Sequence[int]], intruder: Sequence[int]) -> Stall:
    """Decode ``streams`` side by side on an idle engine and let ``intruder`` in."""
    params = SamplingParams(max_tokens=ENDLESS, temperature=0.0)
    names = [f"stream-{next(_numbers)}" for _ in streams]
    for name, prompt in zip(names, streams, strict=True):
        engine.submit(Request(name, tuple(prompt), params, reuse=False))
    try:
        steps = _events(engine, names)
        # the first gaps hold the streams' own prefill
        _take(steps, 10)
        alone, alone_tokens = _take(steps, QUIET)
        long = f"long-{next(_numbers)}"
        begun = time.perf_counter()
        engine.submit(Request(long, tuple(intruder), replace(params, max_tokens=1), reuse=False))
        beside, tokens = list[float](), 0
        while long in engine.scheduler.running or any(s.request.request_id == long for s in engine.scheduler.waiting):
            gaps, committed = _take(steps, 1)
            beside, tokens = beside + gaps, tokens + committed
        seconds = time.perf_counter() - begun
        after, after_tokens = _take(steps, QUIET)
    finally:
        for name in names:
            engine.cancel(name)
        while engine.busy:
            engine.step()
    return Stall(tuple(alone + after), tuple(beside), seconds, alone_tokens + after_tokens, tokens)


def _events(engine: Engine, names: Sequence[str]) -> Iterator[list[tuple[float, int]]]:
    """Step after step, of every stream that got tokens the seconds since it last did, and how many it got."""
    last = dict.fromkeys(names, time.perf_counter())
    while True:
        outputs = engine.step().outputs
        now = time.perf_counter()
        got = [output for output in outputs if output.request_id in last]
        if any(output.finish_reason is not None for output in got):
            raise RedraftError("a stream reached the end of its context; give fewer or shorter prompts")
        yield [(now - last[output.request_id], len(output.tokens)) for output in got]
        last.update((output.request_id, now) for output in got)


def _take(steps: Iterator[list[tuple[float, int]]], number: int) -> tuple[list[float], int]:
    """Gaps of the next ``number`` steps that brought tokens, and how many tokens."""
    gaps, tokens = list[float](), 0
    while number:
        events = next(steps)
        gaps += [gap for gap, _ in events]
        tokens += sum(committed for _, committed in events)
        number -= bool(events)
    return gaps, tokens


def first_token(engine: Engine, prompt: Sequence[int], salt: str) -> float:
    """Seconds from submission to the first token on an idle engine."""
    name = f"first-{next(_numbers)}"
    begun = time.perf_counter()
    params = SamplingParams(max_tokens=1, temperature=0.0)
    engine.submit(Request(name, tuple(prompt), params, cache_salt=salt))
    while not engine.step().outputs:
        pass
    seconds = time.perf_counter() - begun
    while engine.busy:
        engine.step()
    return seconds


def run(
    config: EngineConfig, streams: Sequence[int], tokens: int, prefix: int, json_file: Path | None, command: list[str]
) -> None:
    """Measure for each number of ``streams``; prints a table and, last, a line of JSON."""
    engine = build_engine(config)
    source = random.Random(0)

    def text(length: int) -> list[int]:
        return [source.randrange(engine.info.vocab_size) for _ in range(length)]

    if tokens + PAGE > engine.info.max_model_len:
        raise RedraftError(f"a prompt of {tokens} tokens does not fit; {engine.info.max_model_len} is the most")
    # random text gives the draft nothing to hold on to; a loop gives it all: streams of both kinds
    engine.state.eos = ()
    rows = []
    for number in streams:
        prompts = [text(60) if n % 2 else text(6) * 10 for n in range(number)]
        found = {"streams": number, "prompt_tokens": tokens, **stall(engine, prompts, text(tokens)).figures()}
        rows.append(found)
        alone, beside = (1e3 * found[way]["gap_p99"] for way in ("alone", "beside"))
        print(
            f"{number:3} streams: p99 gap {alone:.1f} ms, {beside:.1f} ms beside a prompt of {tokens} tokens "
            f"({found['p99_ratio']:.2f} x), which took {found['prefill_seconds']:.1f} s",
            flush=True,
        )
    prompt = text(prefix)
    fresh = median(first_token(engine, prompt, f"salt {n}") for n in range(3))
    again = [first_token(engine, prompt, "salt 0") for _ in range(3)]
    reuse = {"prompt_tokens": prefix, "fresh_seconds": fresh, "reused_seconds": median(again)}
    reuse["ratio"] = fresh / reuse["reused_seconds"]
    print(
        f"first token of a prompt of {prefix} tokens: {1e3 * fresh:.0f} ms, "
        f"{1e3 * reuse['reused_seconds']:.0f} ms with its pages at hand ({reuse['ratio']:.1f} x)"
    )
    facts = {"draft": engine.info.draft, "dtype": engine.info.dtype, "device": engine.info.device}
    line = json.dumps({"benchmark": "stall", **stamp(command), "engine": facts, "stall": rows, "reuse": reuse})
    if json_file is not None:
        json_file.write_text(line + "\n")
    print(line, flush=True)
