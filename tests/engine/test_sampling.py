"""Every sampling parameter, alone and combined, under speculation: token for token what plain decoding gives."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from redraft.drafts.adversarial import adversaries
from redraft.drafts.base import Drafter
from redraft.drafts.ngram import NgramDrafter
from redraft.drafts.none import NoDrafter
from redraft.kernels.rows import Rows
from redraft.server.engine import engine as engine_module
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.parts import Parts, complete
from redraft.server.engine.round import Plan, Ran, round_parts
from redraft.server.engine.types import (
    MAX_LOGIT_BIAS,
    MAX_STOP_TOKENS,
    FinishReason,
    RedraftError,
    Request,
    SamplingParams,
)

NODES, SLOTS, VOCAB, EOS = 6, 4, 331, 2
LOOP, SHORT, LONG = (5, 9, 5, 9, 5, 9, 5), (7,), tuple(range(20, 140))
GREEDY = SamplingParams(max_tokens=24, temperature=0)

ALONE = {
    "presence": replace(GREEDY, presence_penalty=1.7),
    "frequency": replace(GREEDY, frequency_penalty=0.6),
    "negative frequency": replace(GREEDY, frequency_penalty=-0.4),
    "repetition": replace(GREEDY, repetition_penalty=1.4),
    "bias": replace(GREEDY, logit_bias=((17, 1.0), (44, -100.0), (300, 0.9))),
    "min_tokens": replace(GREEDY, logit_bias=((EOS, 100.0),), min_tokens=9),
    "stop tokens": replace(GREEDY, stop_token_ids=tuple(range(40, 90))),
    "ignore_eos": replace(GREEDY, logit_bias=((EOS, 0.8),), ignore_eos=True),
}


@pytest.fixture(scope="module")
def config(quick_config: Callable[..., EngineConfig]) -> EngineConfig:
    return quick_config(max_num_seqs=SLOTS, max_nodes=NODES, max_num_batched_tokens=64)


@pytest.fixture(scope="module")
def engine(config: EngineConfig) -> Engine:
    engine = build_engine(config)
    engine.pacer.most_rows = 64
    return engine


def decode(engine: Engine, requests: Sequence[Request]) -> dict[str, tuple[list[int], FinishReason]]:
    """Tokens and ends of ``requests`` decoded together, by id."""
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    ends = {}
    for request in requests:
        engine.submit(request)
    while engine.busy:
        for output in engine.step().outputs:
            tokens[output.request_id] += output.tokens
            if output.finish_reason is not None:
                ends[output.request_id] = output.finish_reason
    return {name: (text, ends[name]) for name, text in tokens.items()}


def plain(engine: Engine, requests: Sequence[Request]) -> dict[str, tuple[list[int], FinishReason]]:
    """Each by itself, without a draft."""
    engine.drafter = NoDrafter()
    return {name: end for request in requests for name, end in decode(engine, [request]).items()}


def drafters(texts: Sequence[Sequence[int]]) -> dict[str, Drafter]:
    """``texts``: what a draft thinks is the true text behind each slot."""
    ngram = NgramDrafter(SLOTS, VOCAB, torch.device("cpu"), NODES)
    return {"ngram": ngram, **adversaries(texts, SLOTS, VOCAB, NODES)}


def check(
    engine: Engine, requests: Sequence[Request], only: Sequence[str] = ()
) -> dict[str, tuple[list[int], FinishReason]]:
    """Whatever drafts, ``requests`` together give what each gives alone; returns that.  ``only`` names drafters."""
    expected = plain(engine, requests)
    texts = [[*request.prompt, *expected[request.request_id][0]] for request in requests]
    for name, drafter in drafters(texts).items():
        if only and name not in only:
            continue
        engine.drafter = drafter
        assert decode(engine, requests) == expected, name
    return expected


@pytest.mark.parametrize("params", ALONE.values(), ids=ALONE)
def test_alone_it_changes_the_text_and_never_with_the_draft(engine: Engine, params: SamplingParams) -> None:
    """Greedily, where this target repeats itself, and drawn from a few, where it does not always."""
    changed = []
    for temperature in (0.0, 0.6):
        params = replace(params, temperature=temperature, top_k=12, seed=11)
        neutral = SamplingParams(params.max_tokens, temperature, top_k=12, seed=11)
        requests = [Request(str(n), prompt, params) for n, prompt in enumerate((LOOP, SHORT, LONG))]
        got = check(engine, requests, ("right", "wrong", "tree"))
        changed.append(got != plain(engine, [replace(request, params=neutral) for request in requests]))
    assert any(changed)


def test_random_values_combined_and_mixed_in_a_batch(engine: Engine) -> None:
    """More requests than slots, so that slots change hands between those that ask for much and for nothing."""
    source = random.Random(1)
    for number in range(3):
        requests = [Request(f"{number}-{n}", _prompt(source), _params(source)) for n in range(7)]
        check(engine, requests)


def _prompt(source: random.Random) -> tuple[int, ...]:
    few = [source.randrange(VOCAB) for _ in range(3)]
    return tuple(source.choice(few) for _ in range(source.choice((1, 5, 40))))


def _some(source: random.Random, *counts: int) -> tuple[int, ...]:
    """Different tokens, as many as one of ``counts``."""
    return tuple(source.sample(range(VOCAB), source.choice(counts)))


def _params(source: random.Random) -> SamplingParams:
    most = source.choice((3, 12, 30))
    return SamplingParams(
        max_tokens=most,
        temperature=source.choice((0.0, 0.7, 1.3)),
        top_p=source.choice((1.0, 0.9)),
        top_k=source.choice((0, 30)),
        min_p=source.choice((0.0, 0.05)),
        seed=source.randrange(2**64),
        presence_penalty=source.choice((0.0, 0.0, source.uniform(-2, 2))),
        frequency_penalty=source.choice((0.0, 0.0, source.uniform(-2, 2))),
        repetition_penalty=source.choice((1.0, 1.0, source.uniform(0.7, 1.6))),
        logit_bias=tuple(
            (t, source.uniform(-2, 2)) for t in source.sample(range(VOCAB), source.choice((0, 0, 3, 200)))
        ),
        min_tokens=source.choice((0, 0, most // 2)),
        stop_token_ids=_some(source, 0, 0, 2, MAX_STOP_TOKENS),
        ignore_eos=source.random() < 0.3,
    )


@pytest.mark.parametrize("lag", [0, 1])
def test_counts_survive_preemption(config: EngineConfig, engine: Engine, lag: int) -> None:
    """Little memory: who gave up its place comes back with all that it had counted.  ``lag`` 1 is how a GPU is read."""
    params = SamplingParams(150, 0.7, frequency_penalty=0.3, repetition_penalty=1.2, min_tokens=140, seed=3)
    requests = [Request(str(n), LOOP[n:] + LOOP, replace(params, seed=n)) for n in range(4)]
    expected = plain(engine, requests)
    tight = build_engine(replace(config, kv_pages=5, max_model_len=200))
    tight.lag = lag
    tight.drafter = drafters([[*r.prompt, *expected[r.request_id][0]] for r in requests])["ngram"]
    assert decode(tight, requests) == expected
    assert tight.scheduler.preemptions > 0


def test_min_tokens_stop_tokens_and_eos_hold_inside_an_accepted_run(engine: Engine) -> None:
    (free,) = plain(engine, [Request("r", LONG, GREEDY)]).values()
    for number in range(1, 12):
        token = free[0][number]
        first = free[0].index(token)
        params = replace(GREEDY, stop_token_ids=(token,))
        (got,) = check(engine, [Request("r", LONG, params)], ("right", "tree")).values()
        assert got == (free[0][: first + 1], FinishReason.STOP)
        (later,) = check(engine, [Request("r", LONG, replace(params, min_tokens=number + 2))], ("right",)).values()
        assert token not in later[0][: number + 2]
        assert len(later[0]) >= number + 2
    unending = replace(GREEDY, logit_bias=((EOS, 100.0),))
    assert check(engine, [Request("r", LONG, unending)])["r"] == ([EOS], FinishReason.STOP)
    (got,) = check(engine, [Request("r", LONG, replace(unending, ignore_eos=True))]).values()
    assert got == ([EOS] * 24, FinishReason.LENGTH)
    # a request that may name eos itself ends there although the target's own do not end it
    (got,) = check(engine, [Request("r", LONG, replace(unending, ignore_eos=True, stop_token_ids=(EOS,)))]).values()
    assert got == ([EOS], FinishReason.STOP)


def test_a_grammars_mask_follows_the_tree(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy grammar: after token t only tokens of another residue modulo 5 may come."""

    class Residues:
        def see(self, rows: Rows) -> None:
            self.token = rows.token

        def write(self, allowed: torch.Tensor, left_out: torch.Tensor) -> None:
            may = (torch.arange(352) % 5 != self.token.unsqueeze(1) % 5).view(len(self.token), -1, 32)
            words = (may.to(torch.int64) << torch.arange(32)).sum(2)
            allowed.copy_(torch.where(words >= 2**31, words - 2**32, words))

    def masked(state: Any, target: Any, drafter: Any, plan: Plan, *rest: Any) -> Parts[Ran]:
        return complete(round_parts(state, target, drafter, replace(plan, guided=True), *rest), Residues())
        yield  # so that the engine finds parts, of which this has one

    monkeypatch.setattr(engine_module, "round_parts", masked)
    requests = [Request(str(n), p, replace(GREEDY, temperature=0.8 * n)) for n, p in enumerate((LOOP, LONG))]
    for (tokens, _), request in zip(check(engine, requests).values(), requests, strict=True):
        text = [request.prompt[-1], *tokens]
        assert all(a % 5 != b % 5 for a, b in pairwise(text))


def test_values_are_those_of_transformers(engine: Engine, config: EngineConfig) -> None:
    """Repetition penalty, sequence bias and shortest length of another implementation, greedily."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(config.target, dtype=torch.float32)
    bias = {17: 0.4, 44: -2.0, EOS: 1.1}
    params = replace(GREEDY, repetition_penalty=1.3, logit_bias=tuple(bias.items()), min_tokens=12)
    for prompt in (LOOP, LONG):
        text = model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=24,
            repetition_penalty=1.3,
            sequence_bias={(token,): value for token, value in bias.items()},
            min_new_tokens=12,
            pad_token_id=0,
        )
        (got,) = plain(engine, [Request("r", prompt, params)]).values()
        assert got[0] == text[0, len(prompt) :].tolist()


def test_penalties_are_openais(engine: Engine, config: EngineConfig) -> None:
    """A token's logit minus frequency · count minus presence · (count > 0), written out over transformers' logits."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(config.target, dtype=torch.float32)
    text = list(LOOP)
    for _ in range(24):
        logits = model(torch.tensor([text])).logits[0, -1]
        made = text[len(LOOP) :]
        count = torch.bincount(torch.tensor(made, dtype=torch.int64), minlength=VOCAB)
        text.append(int((logits - 0.3 * count - 0.5 * (count > 0)).argmax()))
    params = replace(GREEDY, frequency_penalty=0.3, presence_penalty=0.5)
    assert plain(engine, [Request("r", LOOP, params)])["r"][0] == text[len(LOOP) :]


def test_a_round_that_asks_for_nothing_does_nothing_more(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the logits stage ran")

    monkeypatch.setattr("redraft.server.engine.adjusting.adjust", never)
    monkeypatch.setattr("redraft.server.engine.adjusting.count_committed", never)
    engine = build_engine(config)
    decode(engine, [Request("r", LOOP, GREEDY)])
    assert engine.state.adjusting.penalties is None
    assert engine.state.adjusting.bias is None
    with pytest.raises(AssertionError, match="stage ran"):
        decode(engine, [Request("s", LOOP, ALONE["bias"])])


REFUSED = {
    "presence_penalty": [float("nan"), float("inf"), 101.0],
    "frequency_penalty": [float("-inf"), -1e308],
    "repetition_penalty": [0.0, -1.0, float("nan"), 1e-320, 1e300],
    "logit_bias": [((0, float("nan")),), ((0, 101.0),), ((VOCAB, 1.0),), ((-1, 1.0),), ((3, 1.0), (3, 2.0))],
    "min_tokens": [-1, 25],
    "stop_token_ids": [(VOCAB,), (-1,), tuple(range(MAX_STOP_TOKENS + 1))],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_what_an_engine_cannot_do_is_refused(engine: Engine, name: str, value: object) -> None:
    assert name in {field.name for field in fields(SamplingParams)}
    with pytest.raises(RedraftError, match=f"{name}|token ids"):
        engine.submit(Request("r", LOOP, replace(GREEDY, **{name: value})))
    assert not engine.busy


def test_as_many_biases_as_the_table_holds(engine: Engine) -> None:
    some = tuple((token, -100.0) for token in range(VOCAB - 1))
    assert plain(engine, [Request("r", LOOP, replace(GREEDY, logit_bias=some))])["r"][0] == [VOCAB - 1] * 24
    with pytest.raises(RedraftError, match=f"at most {MAX_LOGIT_BIAS}"):
        engine.submit(Request("r", LOOP, replace(GREEDY, logit_bias=tuple((t, 0.0) for t in range(513)))))
