"""With graphs an engine says what it says without: a GPU with its own, elsewhere with what stands in for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from llguidance import LLMatcher

from redraft.benchmarks.tiny import make_tiny_target
from redraft.kernels.attention import block_attention
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.types import Request, SamplingParams

CHOICE = LLMatcher.grammar_from_regex("(ab|ba){3,9}")
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"logprobs": 3},
    {"temperature": 0.9, "top_p": 0.9, "top_k": 40},
    {"temperature": 0.7, "frequency_penalty": 0.5, "logit_bias": ((9, 2.0),), "min_tokens": 5, "logprobs": 0},
)
CUDA = pytest.param(
    "cuda", marks=(pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
)


def run(engine: Engine) -> dict[str, list[Any]]:
    """Tokens and scores of requests of every kind, with and without a grammar, that come while others are answered."""
    waiting = [
        Request(
            str(number),
            tuple(30 + (number * 7 + i) % (2 + number % 4) for i in range(6 + 40 * (number % 3))),
            SamplingParams(20, seed=number, **{"temperature": 0.0} | KINDS[number % 4]),
            grammar=CHOICE if number % 3 == 2 else None,
        )
        for number in range(12)
    ]
    told = {request.request_id: list[Any]() for request in waiting}
    while waiting or engine.busy:
        if waiting:
            engine.submit(waiting.pop(0))
        for _ in range(2):
            for output in engine.step().outputs:
                told[output.request_id] += zip(output.tokens, output.logprobs or output.tokens, strict=True)
    return told


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.usefixtures("unhurried")
def test_what_is_said_with_graphs_is_what_is_said_without(
    device: str,
    quick_config: Callable[..., EngineConfig],
    recording: Any,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    folder = make_tiny_target(tmp_path / "tiny", tokenizer=True)
    sizes = {"max_num_seqs": 3, "max_nodes": 5, "max_model_len": 256, "max_num_batched_tokens": 64}
    config = quick_config(target=str(folder), device=device, dtype="bf16" if device == "cuda" else "fp32", **sizes)
    if device == "cpu":
        request.getfixturevalue("twins")
    plain, engine = build_engine(replace(config, cuda_graphs=False)), build_engine(config)
    if device == "cpu":
        recording(engine)
        plain.make_attention, engine.lag = engine.make_attention, 1
    assert (plain.graphs.make_recorder, plain.make_attention) == (None, engine.make_attention)
    wanted = run(plain)
    assert all(wanted.values())
    for _ in range(2):
        assert run(engine) == wanted
    assert engine.graphs.failure is None
    plans = [plan for _, plan in engine.graphs.recorded]
    assert {plan.parts for plan in plans} == {1, 3}
    assert any(plan.scored for plan in plans)
    assert any(plan.prefill and plan.rows for plan in plans)
    assert device == "cpu" or engine.make_attention is block_attention
