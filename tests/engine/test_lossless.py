"""Promise 1: the output never depends on the draft.  Token for token, and the cache byte for byte.

On a random target, whose nearly flat logits make every decision a close one; ``tests/engine/test_real_target.py`` does
the same with the embedded target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from redraft.drafts.adversarial import adversaries
from redraft.drafts.base import Drafter
from redraft.drafts.ngram import NgramDrafter
from redraft.drafts.none import NoDrafter
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.types import Request, SamplingParams

NODES = 7
SLOTS = 4
PROMPTS = ([5, 9, 5, 9, 5, 9, 5], list(range(20, 140)), [7], [11, 12, 13] * 50)
"""A loop, one that crosses a page while decoding, a single token, a long loop."""
VOCAB = 331

SAMPLING = {
    "greedy": SamplingParams(max_tokens=40, temperature=0),
    "T=0.8": SamplingParams(max_tokens=40, temperature=0.8, seed=-5),
    "filtered": SamplingParams(max_tokens=40, temperature=1.1, top_p=0.9, top_k=40, min_p=0.01, seed=2**64 - 1),
}

Decode = Callable[[Engine, Sequence[Sequence[int]], SamplingParams], list[list[int]]]


@pytest.fixture(scope="module", params=["bf16", "fp32"])
def engine(request: pytest.FixtureRequest, quick_config: Callable[..., EngineConfig]) -> Engine:
    sizes = {"max_num_seqs": SLOTS, "max_nodes": NODES, "max_num_batched_tokens": 64}
    return build_engine(quick_config(dtype=request.param, self_check=True, **sizes))


def decode(engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[int]]:
    """Outputs of ``prompts`` decoded together."""
    outputs: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}
    for i, prompt in enumerate(prompts):
        engine.submit(Request(str(i), tuple(prompt), params))
    while engine.busy:
        for output in engine.step().outputs:
            outputs[output.request_id] += output.tokens
    engine.scheduler.check_integrity()
    return list(outputs.values())


def plain(engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[int]]:
    engine.drafter = NoDrafter()
    return [decode(engine, [prompt], params)[0] for prompt in prompts]


def drafters(texts: Sequence[Sequence[int]]) -> dict[str, Drafter]:
    """``texts``: the whole true text behind each slot."""
    ngram = NgramDrafter(SLOTS, VOCAB, torch.device("cpu"), NODES)
    return {"ngram": ngram, **adversaries(texts, SLOTS, VOCAB, NODES)}


@pytest.mark.parametrize("params", SAMPLING.values(), ids=SAMPLING)
def test_output_never_depends_on_the_draft_or_the_batch(engine: Engine, params: SamplingParams) -> None:
    engine.pacer.most_rows = 64
    expected = plain(engine, PROMPTS, params)
    assert len({tuple(text) for text in expected}) == len(PROMPTS)
    texts = [[*p, *e] for p, e in zip(PROMPTS, expected, strict=True)]
    for name, drafter in drafters(texts).items():
        engine.drafter = drafter
        assert decode(engine, PROMPTS, params) == expected, name


def test_rows_that_do_not_suffice_for_all_nodes_change_nothing(engine: Engine) -> None:
    params = SAMPLING["T=0.8"]
    expected = plain(engine, PROMPTS, params)
    texts = [[*p, *e] for p, e in zip(PROMPTS, expected, strict=True)]
    for rows in (1, 6, 9):
        engine.pacer.most_rows = rows
        for name, drafter in drafters(texts).items():
            engine.drafter = drafter
            assert decode(engine, PROMPTS, params) == expected, (rows, name)


@pytest.mark.parametrize("name", ["ngram", "right", "siblings", "random"])
def test_the_cache_has_the_bytes_of_plain_decoding_and_of_prefill(
    engine: Engine, name: str, keep_caches: Callable[[Engine], list[tuple[torch.Tensor, torch.Tensor]]]
) -> None:
    engine.pacer.most_rows = 64
    params = SamplingParams(max_tokens=40, temperature=0)
    prompt = list(range(100, 210))
    kept = keep_caches(engine)
    (expected,) = plain(engine, [prompt], params)
    engine.drafter = drafters([[*prompt, *expected]] * SLOTS)[name]
    assert decode(engine, [prompt], params) == [expected]
    engine.drafter = NoDrafter()
    decode(engine, [[*prompt, *expected]], SamplingParams(max_tokens=1, temperature=0))
    # the last committed token is an anchor still, without KV
    cached = len(prompt) + len(expected) - 1
    alone, drafted, prefilled = (kv[:, :, :cached] for kv, _ in kept)
    assert alone.abs().amax((0, 1, 3, 4)).min() > 0
    assert torch.equal(drafted, alone)
    assert torch.equal(prefilled, alone)


def test_a_right_draft_is_accepted_whole(engine: Engine) -> None:
    engine.pacer.most_rows = 64
    params = SamplingParams(max_tokens=32, temperature=0)
    (expected,) = plain(engine, [[3, 1, 4]], params)
    engine.drafter = drafters([[3, 1, 4, *expected]] * SLOTS)["right"]
    engine.submit(Request("r", (3, 1, 4), params))
    rounds = []
    while engine.busy:
        rounds += engine.step().outputs
    assert [len(r.tokens) for r in rounds[:-1]] == [NODES + 1] * (len(rounds) - 1)
    assert sum(len(r.tokens) for r in rounds) == len(expected)


def test_same_seed_same_text_alone_or_beside_others_that_come_and_go(engine: Engine) -> None:
    engine.pacer.most_rows = 16
    engine.drafter = NgramDrafter(SLOTS, VOCAB, torch.device("cpu"), NODES)
    params = SamplingParams(max_tokens=60, temperature=0.9, seed=7)
    alone = decode(engine, [[8, 8, 8]], params)[0]
    engine.submit(Request("watched", (8, 8, 8), params))
    got: list[int] = []
    for number in range(400):
        if number % 3 == 0 and number < 60:
            engine.submit(
                Request(f"n{number}", tuple(range(number, number + 30)), SamplingParams(max_tokens=number % 7 + 1))
            )
        if number == 10:
            engine.cancel("n6")
        for output in engine.step().outputs:
            if output.request_id == "watched":
                got += output.tokens
        if not engine.busy:
            break
    assert got == alone
    engine.scheduler.check_integrity()


def test_seeds_differ(engine: Engine) -> None:
    texts = {
        tuple(plain(engine, [[8, 8, 8]], SamplingParams(max_tokens=12, temperature=1.0, seed=seed))[0])
        for seed in range(6)
    }
    assert len(texts) == 6


def test_end_of_text_and_limits_hold_inside_an_accepted_run(engine: Engine) -> None:
    engine.pacer.most_rows = 64
    params = SamplingParams(max_tokens=30, temperature=0)
    prompt = [3, 1, 4]
    (expected,) = plain(engine, [prompt], params)
    reference = [[*prompt, *expected]] * SLOTS
    for cut in range(1, 12):
        engine.drafter = drafters(reference)["right"]
        assert decode(engine, [prompt], SamplingParams(max_tokens=cut, temperature=0)) == [expected[:cut]]
    eos = engine.state.eos
    try:
        for number in range(1, 12):
            engine.state.eos = (expected[number],)
            engine.drafter = drafters(reference)["right"]
            first = expected.index(expected[number])
            assert decode(engine, [prompt], params) == [expected[: first + 1]]
    finally:
        engine.state.eos = eos
