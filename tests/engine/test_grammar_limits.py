"""Grammars that hit a limit of the library: a request fails where plain decoding would, and only there."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import llguidance
import pytest
import torch
from llguidance import LLMatcher, LLParserLimits
from tokenizers import Tokenizer

from redraft.benchmarks.tiny import make_tiny_target
from redraft.drafts.adversarial import ChainDrafter
from redraft.drafts.base import Drafter
from redraft.drafts.none import NoDrafter
from redraft.server.engine import grammar as grammar_module
from redraft.server.engine import guiding
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.types import FinishReason, Request, SamplingParams

PROMPT = tuple(range(5, 21))
pytestmark = pytest.mark.usefixtures("unhurried")
MANY_WAYS = " | ".join(" ".join(["e"] * parts) for parts in range(2, 14))
ITEMS = f'start: "y" z z z | "x" e\nz: "z"\ne: {MANY_WAYS} | /a/'
"""Behind "x" every "a" has more parses than the one before."""
STATES = 'start: "y" z z z | "x" /([ab]*a[ab]{14}|[ab]*b[ab]{13}a)c/\nz: "z"'
"""Behind "x" every "a" needs more states of the lexer."""
LIMITS = {
    "items": (ITEMS, LLParserLimits(max_items_in_row=300)),
    "states": (STATES, LLParserLimits(max_lexer_states=35)),
    "fuel": (STATES, LLParserLimits(step_lexer_fuel=500)),
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = make_tiny_target(tmp_path_factory.mktemp("tiny"), tokenizer=True)
    return build_engine(
        EngineConfig(
            str(folder),
            "t",
            "",
            "ngram",
            device="cpu",
            dtype="fp32",
            self_check=False,
            measure_costs=False,
            max_nodes=40,
        )
    )


@pytest.fixture(scope="module")
def token(engine: Engine) -> Callable[[str], int]:
    tokenizer = Tokenizer.from_file(str(engine.grammars.path))
    return lambda text: int(tokenizer.encode(text, add_special_tokens=False).ids[0])


def decode(
    engine: Engine, drafter: Drafter, request: Request
) -> tuple[list[int], FinishReason | None, str | None, int]:
    """Tokens, end and error of ``request``, and how many tokens were drafted and accepted."""
    engine.drafter = drafter
    engine.submit(request)
    outputs = []
    while engine.busy:
        outputs += engine.step().outputs
    told = [token for output in outputs for token in output.tokens]
    return told, outputs[-1].finish_reason, outputs[-1].error, sum(output.accepted for output in outputs)


def chain(engine: Engine, first: int, then: int) -> Drafter:
    table = torch.full((engine.state.slots + 1, engine.state.positions), then)
    table[:, len(PROMPT)] = first
    return ChainDrafter(table, engine.info.vocab_size, 36)


@pytest.mark.parametrize("limit", sorted(LIMITS))
@pytest.mark.parametrize("chosen", ["x", "y"])
def test_a_draft_brings_no_limit_nearer_and_none_further_away(engine, token, monkeypatch, limit: str, chosen: str):
    """The target goes the way that breaks, with the draft or without, or another one."""
    (grammar, limits), made = LIMITS[limit], []

    def make(*arguments: Any, **options: Any) -> LLMatcher:
        made.append(LLMatcher(*arguments, limits=limits, **options))
        return made[-1]

    monkeypatch.setattr(llguidance, "LLMatcher", make)
    params = SamplingParams(60, temperature=0.0, logit_bias=((token(chosen), 50.0), (token("a"), 50.0)))
    request = Request("r", PROMPT, params, grammar=LLMatcher.grammar_from_lark(grammar))
    tokens, finish, error, _ = plain = decode(engine, NoDrafter(), request)
    if chosen == "x":
        assert (len(tokens) > 4, finish) == (True, FinishReason.ERROR)
        assert "the grammar cannot go on" in error
    else:
        assert (len(tokens), finish, len(made)) == (5, FinishReason.STOP, 1)
    made.clear()
    drafted = decode(engine, chain(engine, token("x"), token("a")), request)
    assert drafted[:3] == plain[:3]
    assert drafted[3] > 1 or chosen == "y", "the target goes the draft's way"
    assert len(made) > 1, "the draft's way broke the grammar"
    assert not engine.scheduler.pool.used


def test_a_grammar_that_cannot_be_taken_back(engine, token):
    """One with a bound of tokens takes a tree in and never back again."""
    grammar = LLMatcher.grammar_from_lark('start: "x" e "y"\ne[max_tokens=8]: /a+/')
    request = Request(
        "r", PROMPT, SamplingParams(60, temperature=0.0, logit_bias=((token("a"), 50.0),)), grammar=grammar
    )
    plain = decode(engine, NoDrafter(), request)
    assert (plain[1], plain[3]) == (FinishReason.STOP, 0)
    drafted = decode(engine, chain(engine, token("x"), token("a")), request)
    assert drafted[:3] == plain[:3]
    assert drafted[3] > 1


@pytest.mark.parametrize("nodes", [0, 1, 5])
def test_a_walk_that_takes_too_long_changes_no_token(engine, token, monkeypatch, nodes: int):
    """By a clock that goes on by a node's share at each look, and on a way that the target goes."""
    ticks = count()
    monkeypatch.setattr(grammar_module, "perf_counter", lambda: next(ticks))
    grammar = LLMatcher.grammar_from_lark('start: "x" /a+/ "y"')
    params = SamplingParams(40, temperature=0.0, logit_bias=((token("a"), 50.0),))
    request = Request("r", PROMPT, params, grammar=grammar)
    plain = decode(engine, NoDrafter(), request)
    assert plain[:2] == ([token("x"), *[token("a")] * 39], FinishReason.LENGTH)
    monkeypatch.setattr(guiding, "MASK_SECONDS", nodes)
    drafted = decode(engine, chain(engine, token("x"), token("a")), request)
    assert drafted[:3] == plain[:3]
    rounds, rest = divmod(40, nodes + 1)
    assert drafted[3] == rounds * nodes + rest, "all that were looked at"
