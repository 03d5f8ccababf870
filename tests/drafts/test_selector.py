"""A selector: what it makes of candidates, against the formula written out; without data to look at."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from redraft.drafts.dflash_config import DraftError, from_json, to_json
from redraft.drafts.selector import Selector, chosen

VOCAB, KEPT, RANK, N, D, K = 40, tuple(range(0, 40, 3)), 4, 3, 5, 6
SCALE = (0.5, 1.0, 2.0, 0.8, 1.3)


@pytest.fixture(params=["pruned", "full"])
def case(request: pytest.FixtureRequest) -> tuple[Selector, Tensor, Tensor, Tensor, Tensor, dict[int, int]]:
    """Selector, tables, candidates, their log-probabilities, and rows by token; some tokens are a text's own."""
    generator = torch.Generator().manual_seed(0)
    ids = KEPT if request.param == "pruned" else tuple(range(VOCAB))
    before, after = torch.randn(2, len(ids), RANK, generator=generator)
    token = torch.stack([torch.randperm(VOCAB, generator=generator)[:K] for _ in range(N * D)]).view(N, D, K)
    belief = torch.randn(N, D, VOCAB, generator=generator).log_softmax(-1).topk(K).values
    selector = Selector(before, after, torch.tensor(ids) if request.param == "pruned" else None, VOCAB)
    return selector, before, after, token, belief, {token: row for row, token in enumerate(ids)}


def test_is_the_formula(case) -> None:
    selector, before, after, token, belief, row = case
    made = selector(token, belief, torch.tensor(SCALE))
    assert made.shape == (N, D, K, K)
    for n in range(N):
        for d in range(D):
            mass = sum(math.exp(b) for b in belief[n, d].tolist())
            for p in range(K):
                lean = [0.0] * K
                if d > 0 and (front := row.get(int(token[n, d - 1, p]))) is not None:
                    behind = [row.get(t) for t in token[n, d].tolist()]
                    lean = [0.0 if c is None else float(before[front] @ after[c]) / SCALE[d] for c in behind]
                weighed = [math.exp(b + x) for b, x in zip(belief[n, d].tolist(), lean, strict=True)]
                expected = [math.log(mass * w / sum(weighed)) for w in weighed]
                torch.testing.assert_close(made[n, d, p], torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_the_chain_takes_the_likeliest_behind_what_it_took(case) -> None:
    selector, *_, token, belief, _ = case
    pairs = selector(token, belief, torch.tensor(SCALE))
    best, value = chosen(token, pairs)
    for n in range(N):
        place = 0
        for d in range(D):
            step = pairs[n, d, place]
            place = int(step.argmax())
            assert (best[n, d, 0], value[n, d, 0]) == (token[n, d, place], step[place])
    assert not torch.equal(best, token[..., belief[0, 0].argmax()].unsqueeze(-1)), "it is not every row's best"


def test_looks_at_no_data(case) -> None:
    selector, *_, token, belief, _ = case
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(tensor) for tensor in (token, belief, torch.tensor(SCALE))]
        pairs = selector(*fake)
        best, value = chosen(fake[0], pairs)
    assert (pairs.shape, best.shape, value.shape) == ((N, D, K, K), (N, D, 1), (N, D, 1))


def test_a_config_says_how_wide_it_is() -> None:
    raw = {
        "num_hidden_layers": 1, "num_target_layers": 4, "block_size": 4, "hidden_size": 8, "intermediate_size": 8,
        "num_attention_heads": 2, "vocab_size": VOCAB, "dflash_config": {"target_layer_ids": [1], "mask_token_id": 3},
    }  # fmt: skip
    assert from_json(raw, "here").selector_rank == 0
    raw["dflash_config"]["selector_rank"] = RANK
    config = from_json(raw, "here")
    assert from_json(to_json(config), "here") == config
    names = [f"candidate_selector.{end}_codebook.weight" for end in ("predecessor", "successor")]
    assert [config.shapes[name] for name in names] == [(VOCAB, RANK)] * 2
    raw["dflash_config"]["selector_rank"] = 0
    with pytest.raises(DraftError, match=r"here: dflash_config\.selector_rank is 0, not a positive number"):
        from_json(raw, "here")
