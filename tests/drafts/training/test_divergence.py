"""Values and gradients of every form against literal formulas under autograd."""

import math

import pytest
import torch
from torch.nn import functional

from redraft.drafts.training.divergence import Kl, Overlap, Scalar, bernoulli_kl, divergence, k3, teacher_rows
from redraft.drafts.training.loss import CHUNK as CHUNKS

CHUNK = CHUNKS["cpu"] // 2

HIDDEN, VOCAB, POSITIONS = 8, 11, 40


def case(rows: int, sharp: float = 1.0):
    generator = torch.Generator().manual_seed(rows)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    hidden = (draw(rows, HIDDEN) * sharp).requires_grad_()
    row = torch.randint(POSITIONS, (rows,), generator=generator)
    label = torch.randint(VOCAB, (rows,), generator=generator)
    weights = [torch.rand(rows, generator=generator) for _ in range(3)]
    return hidden, draw(VOCAB, HIDDEN), draw(POSITIONS, HIDDEN) * sharp, row, label, weights


def distributions(hidden, head, teacher, row):
    return (hidden @ head.T).log_softmax(-1), (teacher[row] @ head.T).log_softmax(-1)


def assert_same(hidden, made, literal) -> None:
    weight = torch.linspace(0.5, 1.5, len(made))  # the gradient of every row is scaled by what comes from above
    torch.testing.assert_close(made, literal, rtol=1e-4, atol=1e-5)
    ours = torch.autograd.grad((made * weight).sum(), hidden)[0]
    theirs = torch.autograd.grad((literal * weight).sum(), hidden)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("rows", [1, 7, CHUNK + 9])
def test_kl_is_the_written_out_sum(rows: int) -> None:
    hidden, head, teacher, row, label, (forward, reverse, hard) = case(rows)
    made = divergence(hidden, head, teacher, row, Kl(forward, reverse, hard, label))
    log_q, log_p = distributions(hidden, head, teacher, row)
    literal = (
        forward * functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
        + reverse * functional.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1)
        + hard * functional.cross_entropy(hidden @ head.T, label, reduction="none")
    )
    assert_same(hidden, made, literal)


def test_overlap_is_one_minus_total_variation() -> None:
    hidden, head, teacher, row, _, _ = case(CHUNK + 5)
    made = divergence(hidden, head, teacher, row, Overlap())
    log_q, log_p = distributions(hidden, head, teacher, row)
    assert_same(hidden, made, 1 - 0.5 * (log_q.exp() - log_p.exp()).abs().sum(-1))


@pytest.mark.parametrize("sharp", [0.5, 6.0], ids=["mild", "clamped"])
def test_scalar_is_the_released_codes(sharp: float) -> None:
    hidden, head, teacher, row, text, (accepted, rejected, _) = case(CHUNK + 5, sharp)
    drafted = text.roll(1)
    made = divergence(hidden, head, teacher, row, Scalar(accepted, rejected, text, drafted))
    log_q, log_p = distributions(hidden, head, teacher, row)
    top = math.log1p(-1e-6)
    s, t = (log.gather(1, text.unsqueeze(1)).squeeze(1).clamp(-10, top) for log in (log_q, log_p))
    p, q = t.exp(), s.exp()
    response = (p * (t - s) + (1 - p) * ((1 - p).log() - (1 - q).log())).clamp_max(10)
    s, t = (log.gather(1, drafted.unsqueeze(1)).squeeze(1) for log in (log_q, log_p))
    z = (t - s).clamp(-20, 20)
    k3_term = (z.exp() - z - 1).clamp(-10, 10)
    if sharp > 1:
        assert (k3_term == 10).any(), "the clamp must bind somewhere"
    assert_same(hidden, made, accepted * response + rejected * k3_term)


def test_the_scalar_terms_vanish_where_both_agree_and_have_dead_zones() -> None:
    agreed = torch.tensor([-0.5, -2.0])
    for term in (bernoulli_kl, k3):
        value, slope = term(agreed, agreed)
        torch.testing.assert_close(value, torch.zeros(2), rtol=0, atol=1e-6)
        torch.testing.assert_close(slope, torch.zeros(2), rtol=0, atol=1e-6)
    assert k3(torch.tensor([-0.1]), torch.tensor([-15.0]))[1].item() == 0.0
    assert bernoulli_kl(torch.tensor([-12.0]), torch.tensor([-0.1]))[1].item() == 0.0


def test_teacher_rows_counts_products_with_the_head() -> None:
    assert teacher_rows(torch.tensor([3, 3, 4])) == 2
    assert teacher_rows(torch.cat((torch.zeros(CHUNK), torch.zeros(2))).long()) == 2, "each chunk makes its own"
