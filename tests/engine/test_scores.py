"""Log-probabilities: transformers' values, and the same bytes whatever drafts, shares the pass or cuts the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from redraft.drafts.adversarial import adversaries
from redraft.drafts.base import Drafter
from redraft.drafts.ngram import NgramDrafter
from redraft.drafts.none import NoDrafter
from redraft.kernels.logprobs import Logprobs
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.rows_plan import recorded_rows
from redraft.server.engine.scores import PromptScores
from redraft.server.engine.types import (
    EngineStats,
    FinishReason,
    RedraftError,
    Request,
    RoundOutput,
    SamplingParams,
    StepOutput,
    TokenLogprobs,
)
from redraft.server.engine.wire import HEADER, Stepped, frame, read_from_engine

NODES, SLOTS, VOCAB = 6, 4, 331
LOOP, SHORT, LONG = (5, 9, 5, 9, 5, 9, 5), (7,), tuple(range(20, 220))
GREEDY = SamplingParams(max_tokens=20, temperature=0, logprobs=5)
CLOSE = 2e-4
"""Of transformers' logits, whose products have other roundings (tests/engine/test_decoder.py)."""

Told = tuple[list[int], list[TokenLogprobs], tuple[TokenLogprobs, ...]]


@pytest.fixture(scope="module")
def config(quick_config: Callable[..., EngineConfig]) -> EngineConfig:
    return quick_config(max_num_seqs=SLOTS, max_nodes=NODES, max_num_batched_tokens=64)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def engine(request: pytest.FixtureRequest, config: EngineConfig) -> Engine:
    engine = build_engine(replace(config, dtype=request.param))
    engine.pacer.most_rows = 64
    return engine


@pytest.fixture(scope="module")
def reference(config: EngineConfig) -> Callable[[Sequence[int]], torch.Tensor]:
    """Log-probabilities behind each token of a text by transformers, [T, V] in double precision."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(config.target, dtype=torch.float32)

    def score(text: Sequence[int]) -> torch.Tensor:
        return torch.log_softmax(model(torch.tensor([list(text)])).logits[0].double(), 1)

    return score


def decode(engine: Engine, requests: Sequence[Request], submitted: Sequence[Request] = ()) -> dict[str, Told]:
    """Tokens, their scores and the prompt's, of ``requests`` decoded together, beside those ``submitted`` before."""
    told: dict[str, Told] = {request.request_id: ([], [], ()) for request in (*requests, *submitted)}
    for request in requests:
        engine.submit(request)
    while engine.busy:
        for output in engine.step().outputs:
            tokens, scores, prompt = told[output.request_id]
            assert not (output.prompt_logprobs and tokens), "the prompt's come with the first tokens"
            told[output.request_id] = (
                [*tokens, *output.tokens],
                [*scores, *output.logprobs],
                prompt or output.prompt_logprobs,
            )
    return told


def drafters(texts: Sequence[Sequence[int]]) -> dict[str, Drafter]:
    """``texts``: what a draft thinks is the true text behind each slot."""
    ngram = NgramDrafter(SLOTS, VOCAB, torch.device("cpu"), NODES)
    return {"ngram": ngram, **adversaries(texts, SLOTS, VOCAB, NODES)}


def plain(engine: Engine, requests: Sequence[Request]) -> dict[str, Told]:
    engine.drafter = NoDrafter()
    return {name: told for request in requests for name, told in decode(engine, [request]).items()}


def assert_close(scores: Sequence[TokenLogprobs], tokens: Sequence[int], exact: torch.Tensor, top: int) -> None:
    """``exact`` [N, V]: the reference's rows of ``tokens``."""
    assert len(scores) == len(tokens) == len(exact)
    for score, token, row in zip(scores, tokens, exact, strict=True):
        assert score.logprob == pytest.approx(row[token].item(), abs=CLOSE)
        assert abs(score.rank - 1 - int((row > row[token]).sum())) <= 1
        best = row.sort(descending=True).values[:top]
        assert [value for _, value in score.top] == pytest.approx(best.tolist(), abs=CLOSE)
        assert [value for _, value in score.top] == pytest.approx([row[t].item() for t, _ in score.top], abs=CLOSE)


REQUESTS = [
    Request("greedy", LOOP, GREEDY),
    Request("sampled", LONG, replace(GREEDY, temperature=0.8, top_k=50, seed=4, logprobs=20)),
    Request("none", SHORT, replace(GREEDY, logprobs=None)),
    Request("changed", SHORT, replace(GREEDY, temperature=1.2, frequency_penalty=2.0, logit_bias=((9, 60.0),), seed=1)),
    Request("zero", LOOP[1:], replace(GREEDY, logprobs=0)),
]


def test_are_transformers_of_the_raw_logits(config: EngineConfig, reference: Callable[..., torch.Tensor]) -> None:
    """Temperature, filters, penalties and bias choose other tokens, and change no log-probability."""
    for request in REQUESTS:
        tokens, scores, prompt = plain(build_engine(config), [request])[request.request_id]
        assert prompt == ()
        if request.params.logprobs is None:
            assert scores == []
            continue
        exact = reference([*request.prompt, *tokens])[len(request.prompt) - 1 : -1]
        assert_close(scores, tokens, exact, request.params.logprobs)
        assert all(len(score.top) == request.params.logprobs for score in scores)
    assert tokens != [9] * 20


def test_have_the_same_bytes_whatever_drafts_and_shares_the_pass(engine: Engine) -> None:
    """More of them than slots; some ask for many, some for none."""
    expected = plain(engine, REQUESTS)
    assert all(len(expected[r.request_id][1]) == (0 if r.params.logprobs is None else 20) for r in REQUESTS)
    texts = [[*r.prompt, *expected[r.request_id][0]] for r in REQUESTS]
    for rows in (64, 9):
        engine.pacer.most_rows = rows
        for name, drafter in drafters(texts).items():
            engine.drafter = drafter
            assert decode(engine, REQUESTS) == expected, (rows, name)


def test_of_prompts_are_transformers(config: EngineConfig, reference: Callable[..., torch.Tensor]) -> None:
    engine = build_engine(config)
    for prompt, top in ((LONG, 3), (LOOP, 0), (SHORT, 5)):
        params = replace(GREEDY, max_tokens=2, logprobs=None, prompt_logprobs=top)
        _, _, scores = decode(engine, [Request("r", prompt, params, reuse=False)])["r"]
        assert_close(scores, prompt[1:], reference(prompt)[:-1], top)


@pytest.mark.parametrize("lag", [0, 1])
def test_of_prompts_have_the_same_bytes_however_the_prompt_is_cut(
    engine: Engine, config: EngineConfig, lag: int
) -> None:
    """Alone in large chunks, and beside others in what little memory and few rows leave; ``lag`` 1 is a GPU's.

    There the passes that nobody wants scores of are recorded.
    """
    params = replace(GREEDY, max_tokens=120, temperature=0.8, prompt_logprobs=4)
    requests = [Request(str(n), LONG[n:84] + LOOP * n, params, reuse=False) for n in range(4)]
    engine.pacer.most_rows = 64
    expected = plain(engine, requests)
    assert all(len(expected[r.request_id][2]) == len(r.prompt) - 1 for r in requests)
    dtype = engine.info.dtype
    tight = build_engine(replace(config, dtype=dtype, kv_pages=5, max_model_len=400, max_num_batched_tokens=24))
    tight.lag, tight.pacer.recorded = lag, lag * recorded_rows(24, 1)
    tight.graphs.make_recorder = (lambda: lambda run: run) if lag else None
    tight.drafter = NgramDrafter(SLOTS, VOCAB, torch.device("cpu"), NODES)
    silent = [Request(f"s{n}", LONG[n:60], replace(params, logprobs=None, prompt_logprobs=None)) for n in range(3)]
    told = decode(tight, [silent[0], *requests, *silent[1:]])
    assert {name: told[name] for name in expected} == expected
    assert any(plan.prefill for _, plan in tight.graphs.recorded) == bool(lag)
    assert tight.scheduler.preemptions > 0
    assert not tight.prompt_scores._found


def test_of_a_prompt_that_gave_up_its_place_halfway(config: EngineConfig) -> None:
    engine = build_engine(replace(config, max_num_batched_tokens=16))
    request = Request("r", LONG, replace(GREEDY, prompt_logprobs=2), reuse=False)
    expected = plain(engine, [request])
    engine.submit(request)
    engine.step()
    engine.step()
    engine.state.release(engine.scheduler._preempt())
    # beside another that is prefilled with it, it is cut elsewhere
    other = replace(request, request_id="other", prompt=LONG[:50])
    told = decode(engine, [other], [request])
    assert told["r"] == expected["r"]
    assert told["other"] == plain(engine, [other])["other"]


def test_a_request_that_leaves_early_leaves_no_scores(config: EngineConfig) -> None:
    engine = build_engine(replace(config, max_num_batched_tokens=16))
    engine.submit(Request("r", LONG, replace(GREEDY, prompt_logprobs=1), reuse=False))
    engine.step()
    assert engine.prompt_scores._found
    engine.cancel("r")
    assert not engine.prompt_scores._found


class OnDevice:
    """Of a tensor on a GPU what can be had without waiting: a copy on its way."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def to(self, device: str, *, non_blocking: bool) -> torch.Tensor:
        assert (device, non_blocking) == ("cpu", True)
        return self.tensor


def test_scores_of_a_prompt_are_copied_when_found_and_waited_for_by_nobody() -> None:
    chosen, rank = torch.tensor([-1.0, -2.0]), torch.tensor([1, 3])
    found: Any = Logprobs(*map(OnDevice, (chosen, rank, torch.tensor([[4], [5]]), torch.tensor([[-0.5], [-0.25]]))))
    scores = PromptScores()
    scores.found("r", 7, found)
    assert scores.told("r") == (TokenLogprobs(-1.0, 1, ((4, -0.5),)), TokenLogprobs(-2.0, 3, ((5, -0.25),)))


@pytest.mark.parametrize(
    "changes", [{"logprobs": 21}, {"logprobs": -1}, {"prompt_logprobs": 21}, {"prompt_logprobs": -1}], ids=str
)
def test_more_than_the_bound_is_refused(config: EngineConfig, changes: dict[str, Any]) -> None:
    engine = build_engine(config)
    with pytest.raises(RedraftError, match=next(iter(changes))):
        engine.submit(Request("r", LOOP, replace(GREEDY, **changes), reuse=False))
    with pytest.raises(RedraftError, match="reuse must be False"):
        engine.submit(Request("r", LOOP, replace(GREEDY, prompt_logprobs=1)))


def test_the_wire_carries_them_to_the_last_bit() -> None:
    score = TokenLogprobs(-0.12345678806304932, 2, ((5, -0.1), (7, float("-inf"))))
    output = RoundOutput("r", (7,), finish_reason=FinishReason.STOP, logprobs=(score,), prompt_logprobs=(score, score))
    message = Stepped(StepOutput((output,), EngineStats()))
    assert read_from_engine(frame(message)[HEADER.size :]) == message
