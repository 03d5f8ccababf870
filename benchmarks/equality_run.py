"""Speculative output against plain output over many prompts, token by token and cache byte by byte.

Greedy texts are compared with plain decoding of one request at a time: those of speculation of one request at a time,
and of plain decoding and speculation of many side by side.  Sampled ones, of speculation of many, are compared with
plain decoding of as many.  Ends of text are ignored, so that every request decodes as many tokens as were asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from redraft.benchmarks.kept_cache import kept_caches, same_cells
from redraft.benchmarks.local import decode
from redraft.benchmarks.suite_clock import LEFT_OUT, always
from redraft.drafts.base import Drafter
from redraft.drafts.none import NoDrafter
from redraft.server.engine.engine import Engine
from redraft.server.engine.types import SamplingParams

Prompts = Sequence[Sequence[int]]
SAMPLED = 0.8
"""Temperature of texts that are not greedy."""
PART = 32
"""Prompts that are compared before the time is looked at."""
FIRST_SECONDS = 5.0
"""What the first of them are taken to need."""


@dataclass(slots=True)
class Mismatches:
    """Of one way to decode, summed over prompts."""

    requests: int = 0
    """Compared."""
    tokens: int = 0
    """Compared."""
    requests_that_differ: int = 0
    """In a token."""
    tokens_that_differ: int = 0
    """From a place where two texts part on they have nothing to do with one another, so most of these follow one."""
    caches_that_differ: int = 0
    """Requests of which a byte of a key or value differs, as far as both have decoded the same text."""
    first: str | None = None
    """Where the first token differs."""


def equality_run(
    engine: Engine,
    drafter: Drafter,
    prompts: Prompts,
    max_tokens: int,
    fits: Callable[[float], bool] = always,
) -> dict[str, Any]:
    """Mismatches by way, of ``prompts`` decoded to ``max_tokens`` tokens.

    Side by side are as many as the engine has slots.  ``fits``: whether so many seconds are left; the rest of the
    prompts is left out when those are not that the last part took, and ``left_out`` says how many.
    """
    together = engine.state.slots
    greedy, sampled = (
        SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=1, ignore_eos=True)
        for temperature in (0.0, SAMPLED)
    )
    ways: dict[str, tuple[Drafter, int, SamplingParams]] = {
        "speculative, batch 1": (drafter, 1, greedy),
        f"plain, batch {together}": (NoDrafter(), together, greedy),
        f"speculative, batch {together}": (drafter, together, greedy),
        f"speculative, batch {together}, T = {SAMPLED}": (drafter, together, sampled),
    }
    found = {name: Mismatches() for name in ways}
    took, done = FIRST_SECONDS, 0
    for start in range(0, len(prompts), PART):
        if not fits(took):
            break
        begun, part = time.perf_counter(), prompts[start : start + PART]
        wanted = {
            params: _decoded(engine, NoDrafter(), part, params, batch)
            for params, batch in ((greedy, 1), (sampled, together))
        }
        for name, (one, batch, params) in ways.items():
            made = _decoded(engine, one, part, params, batch)
            for number, (prompt, *pair) in enumerate(zip(part, wanted[params], made, strict=True), start=start):
                _compare(found[name], number, len(prompt), *pair)
        done += len(part)
        took = time.perf_counter() - begun
    for name, of in found.items():
        print(
            f"  {name}: {of.tokens_that_differ} of {of.tokens} tokens differ, of {of.requests_that_differ} of "
            f"{of.requests} requests; {of.caches_that_differ} caches do" + (f"; first {of.first}" if of.first else ""),
            flush=True,
        )
    left_out = len(prompts) - done
    return {
        "prompts": done,
        "max_tokens": max_tokens,
        "ways": {name: asdict(of) for name, of in found.items()},
        **({"left_out": f"{left_out} of {len(prompts)} prompts: {LEFT_OUT}"} if left_out else {}),
    }


def _decoded(
    engine: Engine, drafter: Drafter, prompts: Prompts, params: SamplingParams, batch: int
) -> list[tuple[list[int], Tensor]]:
    """Tokens and cache of every prompt, one at a time or all that there are slots for."""
    with kept_caches(engine) as kept:
        groups = [prompts] if batch > 1 else [[prompt] for prompt in prompts]
        decoded = [one for group in groups for one in decode(engine, drafter, group, params)]
    return [(one.tokens, kept[one.request_id]) for one in decoded]


def _compare(
    found: Mismatches, number: int, prompt: int, wanted: tuple[list[int], Tensor], made: tuple[list[int], Tensor]
) -> None:
    """Add one request to ``found``."""
    (a, cells), (b, others) = wanted, made
    length = max(len(a), len(b))
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    differing = sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))
    found.requests += 1
    found.tokens += length
    found.tokens_that_differ += differing
    if differing:
        found.requests_that_differ += 1
        found.first = found.first or f"prompt {number}, token {same}"
    # the newest token has no keys yet
    found.caches_that_differ += not same_cells(cells, others, prompt + min(same, length - 1))
