"""A step's loss and gradients against a literal derivation: chain by chain, row by row."""

from pathlib import Path

import pytest
import torch

from redraft.drafts.training import eagle3_loss
from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.eagle3_loss import by_position, chain_loss

KEPT = [0, 2, 3, 5, 7, 8, 11, 15, 19, 20, 21, 22, 28, 30, 31, 33, 36]


def derive(run, literal):
    """Loss, and of every pass how many rows were right and how many counted, with gradients left in the module."""
    ids, depth, gamma, soft = run.vocabulary.ids.tolist(), run.config.steps, run.settings.gamma, run.settings.soft
    slow = literal(run.module, run.teacher.embedding)
    loss, weights, right, counted = torch.zeros(()), 0.0, [0] * depth, [0] * depth
    for text in run.texts:
        states = run.cache.states(text)
        for anchor in text.anchors:
            if anchor == 0:
                continue
            behind = text.tokens[anchor + 1 :]
            chain = slow.chain(text.tokens, states.taps, anchor, (*behind, *[0] * depth))
            for i, (token, normed) in enumerate(zip(behind, chain, strict=False)):
                weights += gamma**i
                wanted = run.teacher.head @ states.final[anchor + i]
                if int(wanted.argmax()) not in ids:
                    continue
                log_q = slow.of("lm_head", normed).log_softmax(0)
                row = -(wanted[ids].softmax(0) * log_q).sum() * soft
                if token in ids:
                    row = row - (1 - soft) * log_q[ids.index(token)]
                loss = loss + gamma**i * row
                counted[i] += 1
                right[i] += ids[int(log_q.argmax())] == int(wanted.argmax())
    (loss / weights).backward()
    return loss.item() / weights, right, counted


@pytest.mark.parametrize("kept", [None, KEPT], ids=["whole", "pruned"])
@pytest.mark.parametrize("soft", [1.0, 0.6])
@pytest.mark.parametrize("micro_batch", [1, 5])
def test_a_step_is_the_literal_one(
    make_eagle3_run, literal, tmp_path: Path, kept, soft: float, micro_batch: int
) -> None:
    run = make_eagle3_run(tmp_path, batch=5, micro_batch=micro_batch, kept=kept, soft=soft, gamma=0.7, clip=1e9)
    loss, right, counted = derive(run, literal)
    labels = sum(max(0, chains - i) for i in range(4) for chains in (9, 11, 5, 14, 7))
    assert (sum(counted) < labels) == (kept is not None), "rows must be left out somewhere"
    wanted = {name: parameter.grad.clone() for name, parameter in run.module.named_parameters()}
    run.module.zero_grad()
    seen = {}
    run.optimiser.step = lambda share: seen.update({n: p.grad.clone() for n, p in run.module.named_parameters()})
    run.step()
    assert run.progress.loss == pytest.approx(loss, rel=1e-5)
    assert seen.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(seen[name], gradient, rtol=2e-3, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")
    share = [run.progress.figures[f"alpha_{i}"] for i in range(4)]
    assert share == [pytest.approx(a / b, abs=1e-4) for a, b in zip(right, counted, strict=True)]
    assert run.progress.labels == labels


def test_chunks_change_nothing(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    teacher = toy()
    vocabulary = Vocabulary(teacher, KEPT)
    inputs = [torch.randn(11, 3, 16).requires_grad_(), torch.randn(17, 16).requires_grad_()]
    rest = (torch.rand(11, 3), vocabulary.row[torch.randint(37, (11,))], torch.randn(11, 16), teacher.head, vocabulary)
    found = []
    for entries in (1, 3 * (3 * 17 + 37), 1 << 20):
        monkeypatch.setattr(eagle3_loss, "ENTRIES", {"cpu": entries})
        loss, tally = chain_loss(*inputs, *rest, 0.5)
        found.append((loss, tally, *torch.autograd.grad(2 * loss, inputs)))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert found[0][1][1].max() < 11, "some positions must be left out"


def test_gradients_are_those_of_the_value(toy) -> None:
    torch.manual_seed(1)
    teacher = toy()
    vocabulary = Vocabulary(teacher, KEPT)
    hidden, head = torch.randn(7, 3, 16).requires_grad_(), torch.randn(17, 16).requires_grad_()
    weight, label, final = torch.rand(7, 3), vocabulary.row[torch.randint(37, (7,))], torch.randn(7, 16)
    loss, _ = chain_loss(hidden, head, weight, label, final, teacher.head, vocabulary, 0.3)
    made = torch.autograd.grad(loss, (hidden, head))
    z = final @ teacher.head.T
    p, inside = z[:, KEPT].softmax(-1), vocabulary.row[z.argmax(-1)] >= 0
    hard = torch.nn.functional.one_hot(label.clamp_min(0), 17) * (label >= 0).unsqueeze(1)
    log_q = (hidden @ head.T).log_softmax(-1)
    plain = -((0.3 * p + 0.7 * hard).unsqueeze(1) * log_q).sum(-1) * weight * inside.unsqueeze(1)
    torch.testing.assert_close(loss, plain.sum())
    for one, other in zip(made, torch.autograd.grad(plain.sum(), (hidden, head)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("width", [2, 6], ids=["shorter-than-a-chain", "longer"])
def test_rows_by_the_position_they_predict(width: int) -> None:
    rows = torch.arange(2 * width * 4).view(2, width, 4) + 1
    moved = by_position(rows)
    for text in range(2):
        for position in range(width):
            for i in range(4):
                wanted = rows[text, position - i, i] if position >= i else 0
                assert moved[text, position, i] == wanted
    states = by_position(rows.unsqueeze(-1).expand(-1, -1, -1, 3))
    assert torch.equal(states, moved.unsqueeze(-1).expand(-1, -1, -1, 3))
