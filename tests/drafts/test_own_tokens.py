"""Tokens of a text that a pruned vocabulary lacks: which are found, and that they are ranked with the vocabulary's."""

import torch

from redraft.drafts.base import DraftState
from redraft.drafts.marginals import Noise, marginals
from redraft.drafts.own_tokens import OwnTokens
from redraft.kernels.noise import gumbel
from redraft.kernels.sample import SamplingTable

VOCAB, KEPT = 12, torch.tensor([0, 2, 4, 6, 8])
TEXTS = [[1, 3, 2, 3, 5, 4], [2, 4, 6], [7, 9, 11, 1, 3, 5, 7]]
DEPTH, HIDDEN, MOST = 3, 5, 4


def state(padding: int) -> DraftState:
    """Behind a text lie tokens that are none of its own."""
    length = torch.tensor([*map(len, TEXTS), 0])
    tokens = torch.tensor([[*text, *[10] * (12 - len(text))] for text in [*TEXTS, []]])
    table = torch.zeros(4, 1, dtype=torch.int64)
    kv = torch.zeros(0, 2, 0, 1, 1)
    return DraftState(tokens, length, length > 0, table, kv, SamplingTable.greedy(3, "cpu"))


def literal(text: list[int]) -> list[int]:
    """Newest first, each once."""
    kept = KEPT.tolist()
    return list(dict.fromkeys(token for token in reversed(text) if token not in kept))


def test_the_newest_different_tokens_are_found() -> None:
    own = OwnTokens(KEPT, torch.zeros(VOCAB, HIDDEN), MOST).find(state(12), torch.tensor([2, 0, 1]), 8)
    for number, slot in enumerate((2, 0, 1)):
        found = own.ids[number][~own.absent[number]].tolist()
        lacking = [token for token in reversed(TEXTS[slot]) if token not in KEPT.tolist()][:MOST]
        assert found == list(dict.fromkeys(lacking)) == literal(TEXTS[slot])[: len(found)]
    assert own.absent[2].all(), "a text may lack nothing"


def test_a_context_shorter_than_what_is_looked_for() -> None:
    own = OwnTokens(KEPT, torch.zeros(VOCAB, HIDDEN), 50).find(state(12), torch.tensor([0]), 6)
    assert own.ids[0][~own.absent[0]].tolist() == [5, 3, 1]


def test_they_are_ranked_with_the_vocabulary_by_the_whole_heads_logits() -> None:
    torch.manual_seed(0)
    head, states = torch.randn(VOCAB, HIDDEN), torch.randn(3, DEPTH, HIDDEN)
    tokens, slot = OwnTokens(KEPT, head, MOST), torch.tensor([2, 0, 1])
    own = tokens.find(state(12), slot, 8)
    logits = torch.cat((states @ head[KEPT].T, tokens.logits(states, own)), -1)
    scale, heat = torch.tensor([0.8, 1.0, 1.5]), torch.tensor([0.0, 0.7, 0.7])
    noise = Noise(torch.tensor([3, 4, 5]), torch.tensor([6, 7, 8]), heat)
    for drawn in (None, noise):
        best, score = marginals(logits, scale, 3, KEPT, drawn, own.ids)
        for block in range(3):
            known = sorted({*KEPT.tolist(), *own.ids[block][~own.absent[block]].tolist()})
            for depth in range(DEPTH):
                z = head[known] @ states[block, depth] / scale[depth]
                if drawn is not None and heat[block] > 0:
                    place = drawn.first[block : block + 1] + depth
                    z = (
                        z
                        + heat[block]
                        * gumbel(drawn.seed[block : block + 1], place, torch.tensor([known]))[0]
                        / scale[depth]
                    )
                wanted = z.log_softmax(-1).topk(3)
                assert best[block, depth].tolist() == [known[i] for i in wanted.indices.tolist()]
                torch.testing.assert_close(score[block, depth], wanted.values, rtol=1e-4, atol=1e-5)
