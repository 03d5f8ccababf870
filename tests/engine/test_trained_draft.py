"""From training to serving: a draft that knows two texts by heart is accepted as often as training says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from redraft.drafts.checkpoint import Checkpoint, read_draft, write_draft
from redraft.drafts.training.blocks import Vocabulary, make_batch
from redraft.drafts.training.data import Text
from redraft.drafts.training.loss import IGNORE
from redraft.drafts.training.measure import pooled
from redraft.drafts.training.module import DFlashModule, rope_for
from redraft.drafts.training.rounds import propose, walk
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.load import build_engine
from redraft.server.engine.target.spec import read_spec
from redraft.server.engine.target.teacher import TargetTeacher
from redraft.server.engine.types import Request, SamplingParams

CPU = torch.device("cpu")
PROMPTS = ([5, 9, 5, 9, 5, 9, 5], list(range(20, 120)))
"""The second one's answer crosses a page."""
PARAMS = SamplingParams(max_tokens=30, temperature=0)
STEPS = 50


def decode(target: Path, draft: str, **options: object) -> tuple[list[list[int]], list[int]]:
    """Answers to both prompts, decoded together, and how many drafted tokens each round accepted."""
    config = EngineConfig(
        target=str(target), target_name="tiny", target_sha="0", draft=draft, dtype="fp32", device="cpu", max_num_seqs=2,
        self_check=False, measure_costs=False, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    engine = build_engine(config)
    outputs, accepted = [[] for _ in PROMPTS], []  # type: list[list[int]], list[int]
    for i, prompt in enumerate(PROMPTS):
        engine.submit(Request(str(i), tuple(prompt), PARAMS))
    while engine.busy:
        for output in engine.step().outputs:
            outputs[int(output.request_id)] += output.tokens
            accepted.append(output.accepted)
    return outputs, accepted


def trainable(target: Path, checkpoint: Checkpoint) -> tuple[DFlashModule, TargetTeacher, Vocabulary]:
    module = DFlashModule(checkpoint.config)
    module.load_state_dict({name: tensor for name, tensor in checkpoint.tensors.items() if name != "d2t"})
    teacher = TargetTeacher(target, read_spec(target), "tiny", CPU, torch.float32)
    assert checkpoint.vocabulary is not None
    return module, teacher, Vocabulary(teacher, checkpoint.vocabulary.tolist())


def train(target: Path, checkpoint: Checkpoint, texts: Sequence[Text], into: Path) -> None:
    """Write a draft like ``checkpoint``, but trained on nothing but ``texts``."""
    module, teacher, vocabulary = trainable(target, checkpoint)
    config = checkpoint.config
    states = [teacher.states(text.tokens, config.taps) for text in texts]
    batch = make_batch(config, teacher, vocabulary, texts, states, [text.anchors for text in texts])
    optimiser = torch.optim.Adam(module.parameters(), lr=5e-3)
    for _ in range(STEPS):
        hidden = module(batch.taps, batch.anchor, batch.block, rope_for(config, 300, CPU)).flatten(0, 2)
        loss = functional.cross_entropy(hidden @ vocabulary.head.T, batch.label.flatten(), ignore_index=IGNORE)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    write_draft(into, config, module.state_dict(), tuple(vocabulary.ids.tolist()), {})


@pytest.mark.parametrize(("causal", "rank"), [(False, 0), (True, 0), (False, 4)], ids=["open", "causal", "selector"])
def test_a_trained_draft_is_accepted_as_often_as_training_measures(
    tiny_target: Callable[[str], Path], random_draft: Callable[..., Path], tmp_path: Path, causal: bool, rank: int
) -> None:
    target, folder = tiny_target("qwen3"), tmp_path / "learnt"
    expected, _ = decode(target, "none")
    texts = [Text((*prompt, *said), len(prompt)) for prompt, said in zip(PROMPTS, expected, strict=True)]
    kept = sorted({token for said in expected for token in said})
    with torch.inference_mode(False), torch.enable_grad():
        train(target, read_draft(random_draft(target, kept=kept, causal=causal, selector_rank=rank)), texts, folder)
        checkpoint = read_draft(folder)
        module, teacher, vocabulary = trainable(target, checkpoint)
        rope, taps = rope_for(checkpoint.config, 300, CPU), checkpoint.config.taps
        states = [teacher.states(text.tokens, taps) for text in texts]
        rounds = propose(module, teacher, vocabulary, rope, texts, states)
        packed = [r.accepted.tolist() for r in rounds]
        measured = pooled(packed, checkpoint.config.drafted)
    assert measured.tau > 2.5
    assert measured.tokens == sum(map(len, expected))
    chains, accepted = decode(target, str(folder), draft_branch=1, draft_ngram=False)
    assert chains == expected
    assert len(accepted) == measured.rounds
    assert sorted(accepted) == sorted(counts[place] for counts in packed for place in walk(counts))
    # a tree of the same rows, and n-gram lookup beside it, change no token
    for options in ({"draft_ngram": False}, {}, {"max_nodes": 12}):
        outputs, more = decode(target, str(folder), **options)
        assert outputs == expected
        assert max(more) > 2
