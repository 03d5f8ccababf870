"""Greedy chains of packed passes are those drafted token by token, and rounds are those of decoding."""

import pytest
import torch

from redraft.drafts.training import rounds
from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.eagle3_batch import make_batch
from redraft.drafts.training.eagle3_rounds import draft_chains, drafted_rounds
from redraft.drafts.training.measure import pooled
from redraft.drafts.training.module import rope_for

VOCAB, KEPT = 4, (0, 2, 3)
"""So few that even a random draft is right now and then."""


@pytest.fixture
def setting(toy, eagle3_config, random_eagle3, make_texts):
    teacher, config = toy(vocab=VOCAB), eagle3_config(vocab=VOCAB, draft_vocab=len(KEPT))
    module = random_eagle3(config, seed=1)
    texts = make_texts((3, 30), (1, 4), (9, 11), vocab=VOCAB)
    rope = rope_for(config, 99, torch.device("cpu"))
    return module, teacher, Vocabulary(teacher, KEPT), rope, texts


@torch.no_grad()
def chain(setting, literal, tokens, anchor):
    """The tokens drafted behind ``anchor``, of which and of what is behind it nothing is read."""
    module, teacher = setting[:2]
    slow = literal(module, teacher.embedding)
    slow.kept = KEPT
    read = tokens[: anchor + 1]
    taps = teacher.states(read, module.config.taps).taps
    return [slow.drafted(normed) for normed in slow.chain(read, taps, anchor)]


def test_packed_chains_are_drafted_token_by_token(setting, literal) -> None:
    module, teacher, vocabulary, rope, texts = setting
    states = [teacher.states(text.tokens, module.config.taps) for text in texts]
    batch = make_batch(module.config.steps, teacher, texts, states, [text.anchors for text in texts])
    drafted = draft_chains(module, teacher, vocabulary, rope, batch)
    for number, text in enumerate(texts):
        for place, anchor in enumerate(text.anchors):
            if anchor > 0:
                assert drafted[number, place].tolist() == chain(setting, literal, text.tokens, anchor)


def test_rounds_are_those_of_decoding(setting, literal) -> None:
    module, teacher, vocabulary, rope, texts = setting
    states = [teacher.states(text.tokens, module.config.taps) for text in texts]
    proposed = drafted_rounds(module, teacher, vocabulary, rope, texts, states)
    made = pooled([rounds.accepted.tolist() for rounds in proposed], module.config.steps)
    accepted = []
    for text in texts:
        committed = text.prompt
        while committed < len(text.tokens):
            right, left = 0, text.tokens[committed:]
            for token, wanted in zip(
                chain(setting, literal, text.tokens, committed - 1) if committed > 1 else [], left, strict=False
            ):
                if token != wanted:
                    break
                right += 1
            accepted.append(right)
            committed += right + 1
    assert (made.tokens, made.rounds) == (30 + 4 + 11, len(accepted))
    assert made.accepted == tuple(sum(a >= depth for a in accepted) for depth in (1, 2, 3, 4))
    assert made.accepted[1] > 0, "the draft must be right twice somewhere, or this shows little"


def test_passes_of_any_size_agree(setting, monkeypatch: pytest.MonkeyPatch) -> None:
    module, teacher, vocabulary, rope, texts = setting
    states = [teacher.states(text.tokens, module.config.taps) for text in texts]
    found = []
    for blocks in (1, 7, 500):
        monkeypatch.setattr(rounds, "BLOCKS", {"cpu": blocks})
        found.append([r.accepted.tolist() for r in drafted_rounds(module, teacher, vocabulary, rope, texts, states)])
    assert found[0] == found[1] == found[2]
    assert [len(counts) for counts in found[0]] == [len(text.anchors) for text in texts]
    assert found[0][1][0] == 0, "there is no chain from a text's first token"
