"""Muon for stacked matrices is torch's Muon."""

import pytest
import torch
from torch import nn

from redraft.drafts.training.muon import StackedMuon, orthogonal

SHAPES = [(12, 20), (20, 12), (12, 20), (9, 9), (12, 20)]


def parameters(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in SHAPES]


def test_updates_are_torchs() -> None:
    ours, theirs = parameters(0), parameters(0)
    settings = {"lr": 0.5, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    made, known = StackedMuon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for step in range(4):
        for a, b, gradient in zip(ours, theirs, parameters(step + 1), strict=True):
            a.grad, b.grad = gradient.detach().clone(), gradient.detach().clone()
        if step == 2:  # one that got no gradient stays as it is
            ours[1].grad = theirs[1].grad = None
        before = [p.detach().clone() for p in ours]
        made.step()
        known.step()
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            # torch iterates in bf16
            torch.testing.assert_close(a, b, rtol=0, atol=0.01 * (step + 1))
            buffers = made.state[a]["momentum_buffer"], known.state[b]["momentum_buffer"]
            torch.testing.assert_close(*buffers, rtol=1e-5, atol=1e-6)
            moved = (a - before[number]).abs().mean()
            assert (moved == 0) == (step == 2 and number == 1)
    assert (ours[0] - parameters(0)[0]).abs().mean() > 0.1, "far more than the tolerance"


@pytest.mark.parametrize("shape", [(3, 8, 30), (2, 30, 8)])
def test_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    made = orthogonal(matrices, (3.4445, -4.775, 2.0315), 5, 1e-7)
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.5
    assert values.max() < 1.3
    for matrix, of in zip(matrices, made, strict=True):  # the directions stay
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        rotated = u.T @ of @ v.T
        torch.testing.assert_close(rotated, torch.diag(rotated.diagonal()), rtol=0, atol=1e-4)


def test_bf16_products_make_nearly_the_same_update() -> None:
    exact, coarse = parameters(0), parameters(0)
    settings = {"lr": 0.5, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    made, fast = StackedMuon(exact, **settings), StackedMuon(coarse, **settings)
    fast.products = torch.bfloat16
    for a, b, gradient in zip(exact, coarse, parameters(1), strict=True):
        a.grad, b.grad = gradient.detach().clone(), gradient.detach().clone()
    made.step()
    fast.step()
    for a, b, start in zip(exact, coarse, parameters(0), strict=True):
        assert b.dtype == torch.float32
        assert not torch.equal(a, b), "other products"
        moved, off = (a - start).norm(), (a - b).norm()
        assert off < 0.03 * moved
