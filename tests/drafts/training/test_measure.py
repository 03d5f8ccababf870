"""Acceptance from packed passes equals decoding round by round, one block at a time."""

import pytest
import torch

from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.measure import Acceptance, pooled
from redraft.drafts.training.module import rope_for
from redraft.drafts.training.rounds import BLOCKS, propose

VOCAB = 4
"""So few that even a random draft is right now and then."""


def simulate(module, teacher, vocabulary, rope, texts):
    """As a server would: draft from the newest token, commit what agrees and the target's next token."""
    config = module.config
    tokens, accepted = 0, []
    for text in texts:
        committed = text.prompt
        while committed < len(text.tokens):
            anchor = committed - 1
            taps = teacher.states(text.tokens[: anchor + 1], config.taps).taps  # nothing later exists yet
            block = teacher.embedding[[text.tokens[anchor]] + [config.mask_token_id] * config.drafted]
            with torch.no_grad():
                hidden = module(taps[None], torch.tensor([[anchor]]), block[None, None], rope)[0, 0]
            drafted = vocabulary.ids[(hidden @ vocabulary.head.T).argmax(-1)].tolist()
            right = 0
            for token in drafted:
                if committed + right < len(text.tokens) and token == text.tokens[committed + right]:
                    right += 1
                else:
                    break
            accepted.append(right)
            after = min(committed + right + 1, len(text.tokens))
            tokens, committed = tokens + after - committed, after
    return tokens, accepted


@pytest.mark.parametrize("kept", [None, [0, 2, 3]], ids=["whole", "pruned"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_packed_rounds_are_the_simulated_ones(toy, make_config, random_module, make_texts, kept, causal: bool) -> None:
    teacher = toy(vocab=VOCAB)
    config = make_config(vocab=VOCAB, mask_token_id=1, causal=causal)
    module, vocabulary = random_module(config), Vocabulary(teacher, kept)
    texts = make_texts((3, 40), (1, 2), (9, 11), vocab=VOCAB)
    rope = rope_for(config, 200, torch.device("cpu"))
    states = [teacher.states(text.tokens, config.taps) for text in texts]
    found = propose(module, teacher, vocabulary, rope, texts, states)
    made = pooled([rounds.accepted.tolist() for rounds in found], config.drafted)
    tokens, accepted = simulate(module, teacher, vocabulary, rope, texts)
    assert (made.tokens, made.rounds) == (tokens, len(accepted))
    assert tokens == 40 + 2 + 11
    assert made.accepted == tuple(sum(a >= depth for a in accepted) for depth in (1, 2, 3))
    assert made.accepted[1] > 0, "the draft must be right twice somewhere, or this shows little"
    assert made.tau == tokens / len(accepted)


def test_texts_longer_than_one_pass(toy, make_config, random_module, make_texts) -> None:
    teacher, config = toy(vocab=VOCAB), make_config(vocab=VOCAB, mask_token_id=1)
    module, vocabulary = random_module(config, seed=2), Vocabulary(teacher, None)
    texts = make_texts((2, BLOCKS["cpu"] + 20), vocab=VOCAB)
    rope = rope_for(config, 200, torch.device("cpu"))
    states = [teacher.states(text.tokens, config.taps) for text in texts]
    found = propose(module, teacher, vocabulary, rope, texts, states)
    made = pooled([rounds.accepted.tolist() for rounds in found], config.drafted)
    tokens, accepted = simulate(module, teacher, vocabulary, rope, texts)
    assert (made.tokens, made.rounds, made.accepted[0]) == (tokens, len(accepted), sum(a > 0 for a in accepted))


def test_tau_counts_the_bonus_token_and_pools() -> None:
    assert Acceptance(tokens=10, rounds=4, accepted=(4, 2)).tau == 2.5
    assert Acceptance(tokens=0, rounds=0, accepted=()).tau == 0.0
