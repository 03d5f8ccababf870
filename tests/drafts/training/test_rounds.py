"""Rounds of a tree, and of a draft that leans towards a text's noise; chains are in test_measure.py."""

from dataclasses import replace

import torch

from redraft.drafts.marginals import BRANCH, marginals
from redraft.drafts.training.blocks import Vocabulary, make_batch
from redraft.drafts.training.module import rope_for
from redraft.drafts.training.rounds import propose, walk
from redraft.kernels.block_tree import block_tree
from redraft.kernels.noise import gumbel

VOCAB, CPU = 5, torch.device("cpu")


def test_walking_goes_on_behind_the_correction() -> None:
    assert walk([0, 2, 9, 9, 1, 0, 3]) == [0, 1, 4, 6]
    assert walk([]) == []


def test_a_tree_accepts_the_longest_of_its_paths(toy, make_config, random_module, make_texts) -> None:
    teacher, config = toy(vocab=VOCAB), make_config(vocab=VOCAB, mask_token_id=1)
    module, vocabulary = random_module(config), Vocabulary(teacher, None)
    (text,) = make_texts((3, 60), vocab=VOCAB)
    states, rope = teacher.states(text.tokens, config.taps), rope_for(config, 100, CPU)
    (made,) = propose(module, teacher, vocabulary, rope, [text], [states], nodes=7)
    batch = make_batch(config, teacher, vocabulary, [text], [states], [text.anchors])
    with torch.no_grad():
        logits = module(batch.taps, batch.anchor, batch.block, rope)[0] @ vocabulary.head.T
    top = marginals(logits, torch.ones(config.drafted), BRANCH, None, None)
    token, parent, score = (t.tolist() for t in block_tree(batch.anchor[0], *top, 7))
    for number, anchor in enumerate(text.anchors):
        paths = {0: ()}
        for node in range(1, 8):
            if score[number][node] > 0:
                paths[node] = (*paths[parent[number][node]], token[number][node])
        behind = text.tokens[anchor + 1 :]
        longest = max(len(path) for path in paths.values() if path == behind[: len(path)])
        assert made.accepted[number] == longest
        assert made.left[number] == len(behind)
    (chain,) = propose(module, teacher, vocabulary, rope, [text], [states])
    assert (made.accepted >= chain.accepted).all()
    assert made.accepted.sum() > chain.accepted.sum()


def test_a_sampled_text_with_a_seed_is_drafted_with_its_noise(toy, make_config, random_module, make_texts) -> None:
    teacher, config = toy(vocab=VOCAB), make_config(vocab=VOCAB, mask_token_id=1)
    module, vocabulary = random_module(config), Vocabulary(teacher, None)
    (plain,) = make_texts((3, 40), vocab=VOCAB)
    states, rope = teacher.states(plain.tokens, config.taps), rope_for(config, 100, CPU)

    def drafted(**changes: object) -> torch.Tensor:
        return propose(module, teacher, vocabulary, rope, [replace(plain, **changes)], [states])[0].drafted

    noisy = drafted(temperature=3.0, seed=2**64 - 7)
    assert torch.equal(drafted(temperature=3.0), drafted()), "without a seed the likeliest are drafted"
    assert torch.equal(drafted(seed=5), drafted()), "and at temperature 0"
    assert not torch.equal(noisy, drafted())
    batch = make_batch(config, teacher, vocabulary, [plain], [states], [plain.anchors])
    with torch.no_grad():
        logits = module(batch.taps, batch.anchor, batch.block, rope)[0] @ vocabulary.head.T
    for number, anchor in enumerate(plain.anchors):
        for k in range(config.drafted):
            seed, place = torch.tensor([-7]), torch.tensor([anchor + 1 + k])
            noise = gumbel(seed, place, torch.arange(VOCAB).unsqueeze(0))[0]
            assert noisy[number, k] == (logits[number, k] + 3.0 * noise).argmax()
