"""Promise 1 on the embedded target, in the default dtype and with the default number of threads."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import pytest
import torch

from redraft.drafts.adversarial import adversaries
from redraft.drafts.none import NoDrafter
from redraft.server.engine.config import PAGE, EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.types import Request, SamplingParams

TOKENS = 32
TEXTS = (
    "<|im_start|>user\nA farmer has 12 cows and 3 times as many hens. How many legs are there?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "<|im_start|>user\nWrite a Python function that reverses a list.<|im_end|>\n<|im_start|>assistant\n",
    "one two three one two three one two",
)


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Engine:
    config = EngineConfig(
        str(smollm2), "smollm2-135m", "0", max_model_len=1024, max_num_seqs=4, max_nodes=7, measure_costs=False
    )
    return build_engine(config)


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in TEXTS]


def decode(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> tuple[list[list[int]], list[int]]:
    """Outputs of prompts decoded together, and the tokens each round committed."""
    outputs: list[list[int]] = [[] for _ in prompts]
    for i, prompt in enumerate(prompts):
        engine.submit(Request(str(i), tuple(prompt), params))
    rounds = []
    while engine.busy:
        for output in engine.step().outputs:
            outputs[int(output.request_id)] += output.tokens
            rounds.append(len(output.tokens))
    return outputs, rounds


def test_the_self_check_holds_where_the_tests_run(engine: Engine) -> None:
    assert any("agree bit for bit" in note for note in engine.info.notes), engine.info.notes


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_speculative_equals_plain(engine: Engine, prompts: list[list[int]], temperature: float) -> None:
    params = SamplingParams(max_tokens=TOKENS, temperature=temperature, seed=42)
    ngram, engine.drafter = engine.drafter, NoDrafter()
    try:
        expected = [decode(engine, [prompt], params)[0][0] for prompt in prompts]
        texts = [[*p, *e] for p, e in zip(prompts, expected, strict=True)]
        others = adversaries(texts, engine.state.slots, engine.info.vocab_size, 7)
        for drafter in (ngram, *others.values()):
            for rows in (6, 32):
                engine.drafter, engine.pacer.most_rows = drafter, rows
                assert decode(engine, prompts, params)[0] == expected, (drafter.name, rows)
        engine.drafter = others["right"]
        assert max(decode(engine, prompts[:1], params)[1]) == 8
    finally:
        engine.drafter = ngram


def test_speculative_equals_plain_with_all_that_can_be_asked(engine: Engine, prompts: list[list[int]]) -> None:
    """Tokens and log-probabilities, of requests that ask for different things, in one batch."""
    some = SamplingParams(16, 0.7, top_p=0.95, seed=9, logprobs=3, frequency_penalty=0.4, repetition_penalty=1.1)
    requests = [
        Request("penalties", tuple(prompts[0]), some),
        Request("bias", tuple(prompts[1]), replace(some, logit_bias=((284, 3.0), (198, -100.0)), min_tokens=12)),
        Request("ends", tuple(prompts[2]), replace(some, temperature=0, ignore_eos=True, stop_token_ids=(905,))),
        Request("nothing", tuple(prompts[2]), SamplingParams(16, temperature=0)),
    ]

    def told(asked: list[Request]) -> dict[str, list[tuple[object, ...]]]:
        found: dict[str, list[tuple[object, ...]]] = {request.request_id: [] for request in asked}
        for request in asked:
            engine.submit(request)
        while engine.busy:
            for output in engine.step().outputs:
                found[output.request_id] += zip_longest(output.tokens, output.logprobs)
        return found

    ngram, engine.drafter, engine.pacer.most_rows = engine.drafter, NoDrafter(), 32
    try:
        expected = {name: text for request in requests for name, text in told([request]).items()}
        tokens = [[*r.prompt, *(token for token, _ in expected[r.request_id])] for r in requests]
        others = adversaries(tokens, engine.state.slots, engine.info.vocab_size, 7)
        for drafter in (ngram, others["random"]):
            engine.drafter = drafter
            assert told(requests) == expected, drafter.name
    finally:
        engine.drafter = ngram


def test_the_cache_has_the_bytes_of_prefill(engine: Engine, prompts: list[list[int]]) -> None:
    kept: list[torch.Tensor] = []
    release = engine.state.release

    def keep(slot: int) -> None:
        kept.append(engine.state.kv[:, :, PAGE : 3 * PAGE].clone())
        engine.scheduler.pool.forget()  # the second request computes its own
        release(slot)

    engine.scheduler.pool.forget()
    engine.state.release = keep  # type: ignore[method-assign]
    engine.pacer.most_rows = 32
    try:
        (output,), rounds = decode(engine, prompts[:1], SamplingParams(max_tokens=2 * TOKENS, temperature=0))
        assert max(rounds) > 1
        whole = [*prompts[0], *output]
        decode(engine, [whole], SamplingParams(max_tokens=1, temperature=0))
    finally:
        engine.state.release = release  # type: ignore[method-assign]
    committed = len(whole) - 1
    assert torch.equal(kept[0][:, :, : committed - 8], kept[1][:, :, : committed - 8])


def test_logits_equal_transformers_in_fp32(smollm2: Path, prompts: list[list[int]]) -> None:
    from transformers import AutoModelForCausalLM

    from redraft.kernels.attention import cpu_attention
    from redraft.kernels.rows import cells
    from redraft.server.engine.prefill_rows import prefill_rows
    from redraft.server.engine.prefill_table import Chunk

    config = EngineConfig(str(smollm2), "x", "0", draft="none", dtype="fp32", device="cpu", max_model_len=512)
    engine = build_engine(config)
    ids = torch.tensor(prompts[0] * 4)[:150]
    state, count = engine.state, len(ids)
    with torch.inference_mode():
        state.tokens[0, :count] = ids
        state.page_table[0, :2] = torch.tensor([1, 2])
        state.prefill.write([Chunk(0, 0, count)], count)
        rows = prefill_rows(state, count)
        attend = cpu_attention(rows, state.page_table, count, engine.target.spec.head_dim)
        cell = cells(state.page_table, rows.slot, rows.position, PAGE)
        logits = engine.target.logits(engine.target.forward(rows.token, rows.position, cell, state.kv, attend))
        reference = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)(ids[None]).logits[0]
    assert (logits - reference).abs().max() <= 1e-4 * reference.abs().max()
