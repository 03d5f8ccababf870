"""Does the output depend on the draft?  Plain decoding, prompt by prompt, against every drafter, prompts together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain

import torch

from redraft.benchmarks.kernel_checks import Check
from redraft.benchmarks.local import decode
from redraft.drafts.adversarial import adversaries
from redraft.drafts.base import Drafter
from redraft.drafts.none import NoDrafter
from redraft.server.engine.engine import Engine
from redraft.server.engine.self_check import differences
from redraft.server.engine.types import SamplingParams

TEMPERATURES = (0.0, 0.8)
Prompts = Sequence[Sequence[int]]


def equality_checks(engine: Engine, drafter: Drafter, prompts: Prompts, max_tokens: int) -> Iterator[Check]:
    """The target's own self-check, then each drafter's tokens against plain ones, greedy and sampled.

    ``prompts`` may be as many as the engine has slots: the adversarial drafters know the texts by slot.
    """
    if len(prompts) > engine.state.slots:
        raise ValueError(f"{len(prompts)} prompts do not fit {engine.state.slots} slots")
    own: Check = "prefill, single steps, chain and tree agree", partial(_self_check, engine)
    # apart, so that one that breaks leaves the other
    return chain([own], *(_at(engine, drafter, prompts, max_tokens, temperature) for temperature in TEMPERATURES))


def _at(engine: Engine, drafter: Drafter, prompts: Prompts, max_tokens: int, temperature: float) -> Iterator[Check]:
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=1)
    plain = [decode(engine, NoDrafter(), [prompt], params)[0].tokens for prompt in prompts]
    drafters = [NoDrafter(), drafter, *_adversaries(engine, prompts, plain, drafter.max_nodes)]
    for one in drafters:
        name = f"{one.name} equals plain at T = {temperature}"
        yield name, partial(_equal, engine, one, prompts, params, plain)


def _self_check(engine: Engine) -> str | None:
    with torch.inference_mode():
        found = differences(engine.target, engine.make_attention)
    return f"other bits than in prefill: {', '.join(found)}" if found else None


def _adversaries(engine: Engine, prompts: Prompts, plain: Sequence[Sequence[int]], nodes: int) -> list[Drafter]:
    if not nodes:
        return []
    texts = [[*prompt, *tokens] for prompt, tokens in zip(prompts, plain, strict=True)]
    made = adversaries(texts, engine.state.slots, engine.info.vocab_size, nodes, engine.state.device)
    return list(made.values())


def _equal(
    engine: Engine, drafter: Drafter, prompts: Prompts, params: SamplingParams, wanted: Sequence[Sequence[int]]
) -> str | None:
    made = [one.tokens for one in decode(engine, drafter, prompts, params)]
    wrong = [number for number, (a, b) in enumerate(zip(made, wanted, strict=True)) if a != list(b)]
    if not wrong:
        return None
    a, b = made[wrong[0]], wanted[wrong[0]]
    place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return f"{len(wrong)} of {len(prompts)} prompts differ; prompt {wrong[0]} from its token {place} on"
