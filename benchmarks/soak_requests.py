"""What a soak asks: a few cases whose answers are known, asked in every way, and things that are refused."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

WORDS = ("one", "two", "three", "the cat", "sat on a mat", "and then", "it rained", "for days", "nobody came home")
WRONG: tuple[dict[str, Any], ...] = (
    {"temperature": -1},
    {"top_p": 0},
    {"max_tokens": 0},
    {"n": 1_000_000},
    {"prompt": []},
    {"prompt": [-1]},
    {"stop": [""]},
    {"no_such_parameter": 1},
    {"structured_outputs": {"regex": "(["}},
    {"logit_bias": {"999999": 1}},
)


EXTRAS: tuple[dict[str, Any], ...] = (
    {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"repetition_penalty": 1.3},
    {"logit_bias": {"40": 5, "50": -100}},
    {"min_tokens": 1, "stop_token_ids": [60, 70]},
    {"ignore_eos": True},
    {"logprobs": 2},
    {"prompt_logprobs": 1, "stream": False},
    {"echo": True},
    {"structured_outputs": {"regex": "(a|be|cde){3,12}"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["one", "three"]}}}},
    {"include_rounds": True},
)
"""What a case may ask for beside its text and how it is sampled."""


@dataclass(frozen=True, slots=True)
class Case:
    """A request of the completions endpoint that always has the same answer."""

    number: int
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to ask."""

    body: dict[str, Any]
    case: int | None
    """Whose answer is to come; None where the request is refused."""
    patience: int | None
    """Events or, without a stream, milliseconds after which the client leaves; None waits for the end."""


def make_cases(number: int, source: random.Random, longest: int) -> list[Case]:
    """Prompts of up to ``longest`` words, some that begin the same; every other one is sampled with a seed."""
    beginning = source.choices(WORDS, k=longest // 2)
    cases = []
    for index in range(number):
        words = source.choices(WORDS, k=source.randint(1, longest // 2))
        body: dict[str, Any] = {
            "prompt": " ".join([*(beginning if index % 3 == 0 else []), *words]),
            "max_tokens": source.choice((1, 8, 30, 60, 100)),
            "temperature": 0,
        }
        if index % 2:
            body |= {"temperature": source.choice((0.5, 1.0)), "seed": source.getrandbits(63)}
            body |= source.choice(({}, {"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.05}))
        if index % 5 == 4:
            body["stop"] = source.choice(("a", "e", ["th", "on"]))
        if index % 2:
            body |= EXTRAS[index // 2 % len(EXTRAS)]
        cases.append(Case(index, body))
    return cases


def attempt(cases: list[Case], source: random.Random) -> Attempt:
    """A case in a way that must not change its answer, or what is refused; now and then with a client that leaves."""
    case = source.choice(cases)
    body = dict(case.body)
    if source.random() < 0.05:
        return Attempt(body | source.choice(WRONG), None, None)
    speculation = source.choice((None, None, {"enabled": False}, {"max_nodes": source.randint(0, 6)}))
    if speculation is not None:
        body["speculation"] = speculation
    if source.random() < 0.3:
        body["cache_salt"] = source.choice(("a", "b"))
    if body["temperature"] == 0 and source.random() < 0.2:
        # the same text for each, for greedy decoding has no use for seeds
        body["n"] = source.randint(2, 4)
    body["stream"] = body.get("stream", source.random() < 0.6)
    patience = source.randint(0, 20) if source.random() < 0.25 else None
    return Attempt(body, case.number, patience)
