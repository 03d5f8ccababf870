"""Loss, gradients and weights along the block against literal re-derivations."""

import pytest
import torch
from torch import Tensor

from redraft.drafts.training.loss import CHUNK, IGNORE, decay_weights, dpace_weights, head_loss

VOCAB, HIDDEN = 29, 8
ROWS, STATES = 2 * CHUNK["cpu"] + 7, CHUNK["cpu"] + 5
"""More than two chunks of rows, more than one of teacher states, neither a multiple."""


def literal(hidden: Tensor, head: Tensor, kept: list[int], label: list[int], teacher: Tensor | None, row, soft: float):
    """Loss [N] and log-probabilities [N] in fp64; the target's distribution over all tokens is cut and renormalised."""
    losses, seen = [], []
    for n in range(hidden.shape[0]):
        if label[n] == IGNORE:
            losses.append(torch.zeros((), dtype=torch.float64))
            seen.append(0.0)
            continue
        logits = torch.stack([hidden[n] @ head[v] for v in kept]) if n < 3 else head[kept] @ hidden[n]
        log_q = logits - torch.log(torch.exp(logits).sum())
        loss = -log_q[label[n]]
        if teacher is not None:
            every = torch.exp(head @ teacher[row[n]])
            p = (every / every.sum())[kept]
            p = p / p.sum()
            loss = (1 - soft) * loss + soft * (p * (torch.log(p) - log_q)).sum()
        losses.append(loss)
        seen.append(log_q[label[n]].item())
    return torch.stack(losses), torch.tensor(seen)


@pytest.mark.parametrize(
    ("soft", "pruned"),
    [(None, False), (0.0, True), (0.5, False), (0.5, True), (1.0, True)],
    ids=["hard", "hard-with-teacher", "mixed", "mixed-pruned", "soft-pruned"],
)
def test_loss_and_gradient_are_the_literal_ones(soft: float | None, pruned: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    head = torch.randn(VOCAB, HIDDEN, generator=generator)
    kept = [0, 1, 4, 5, 9, 12, 13, 20, 28] if pruned else list(range(VOCAB))
    hidden = torch.randn(ROWS, HIDDEN, generator=generator)
    teacher = torch.randn(STATES, HIDDEN, generator=generator)
    label = torch.randint(len(kept), (ROWS,), generator=generator)
    label[torch.rand(ROWS, generator=generator) < 0.3] = IGNORE
    row = torch.randint(STATES, (ROWS,), generator=generator)
    upstream = torch.rand(ROWS, generator=generator)  # weights along the block come from outside

    ours = hidden.clone().requires_grad_()
    loss, seen = head_loss(ours, head[kept], label, None if soft is None else teacher, row, soft or 0.0)
    (loss * upstream).sum().backward()
    exact = hidden.double().requires_grad_()
    states = None if soft is None else teacher.double()
    wanted, log_q = literal(exact, head.double(), kept, label.tolist(), states, row.tolist(), soft or 0.0)
    (wanted * upstream.double()).sum().backward()

    torch.testing.assert_close(loss.detach().double(), wanted.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen, log_q, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)
    ignored = label == IGNORE
    assert not loss[ignored].any()
    assert not ours.grad[ignored].any()
    assert ours.grad[~ignored].abs().amax(1).min() > 0
    assert not seen.requires_grad


def test_the_same_distribution_costs_nothing_softly() -> None:
    head, hidden = torch.randn(VOCAB, HIDDEN), torch.randn(3, HIDDEN)
    ours = hidden.clone().requires_grad_()
    loss, _ = head_loss(ours, head, torch.tensor([1, 2, 3]), hidden, torch.arange(3), 1.0)
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.grad, torch.zeros(3, HIDDEN), rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_dpace_weights_by_the_double_loop(alpha: float) -> None:
    q = torch.rand(2, 3, 5).double()
    known = torch.ones(2, 3, 5)
    known[0, 1, 2] = 0
    known[1, 0, 0] = 0
    made = dpace_weights(q.log(), known, alpha)
    for b in range(2):
        for a in range(3):
            for j in range(5):
                total = 0.0
                for m in range(j, 5):
                    product = 1.0
                    for i in range(m + 1):
                        product *= ((1 - alpha) * q[b, a, i].item() + alpha) * known[b, a, i].item()
                    total += product
                assert made[b, a, j].item() == pytest.approx(total, rel=1e-12, abs=1e-15)


def test_dpace_weights_are_the_gradient_of_the_expected_acceptance() -> None:
    """d E[accepted] / d log q_j with E[accepted] = sum over m of the product of q up to m."""
    log_q = torch.rand(6).double().log().requires_grad_()
    log_q.exp().cumprod(0).sum().backward()
    torch.testing.assert_close(dpace_weights(log_q.detach(), torch.ones(6), 0.0), log_q.grad)


def test_decay_weights() -> None:
    made = decay_weights(torch.zeros(2, 3, 4), 4.0)
    expected = torch.tensor([1.0, 0.7788007831, 0.6065306597, 0.4723665527])  # exp(-(k - 1) / 4), k from 1
    torch.testing.assert_close(made, expected.expand(2, 3, 4))
