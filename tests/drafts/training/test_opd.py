"""Draft-OPD's step against a slow, literal re-derivation; resuming; and that it teaches what SFT no longer does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.opd import Opd
from redraft.drafts.training.opd_settings import ABLATIONS, OpdSettings, ablated
from redraft.drafts.training.tap_cache import TapCache

VOCAB, END = 6, 4
KEPT = [0, 1, 2, 3, 4]
SMALL = {"steps": 4, "batch": 3, "micro_batch": 2, "rate": 1e-2, "warmup": 1}


@pytest.fixture
def make_opd(toy, make_config, random_module, make_texts):
    def make(out: Path, settings: OpdSettings, kept=KEPT, states: Path | None = None) -> Opd:
        teacher = toy(vocab=VOCAB)
        config = make_config(vocab=VOCAB, draft_vocab=len(kept or ()))
        texts = make_texts((3, 14), (1, 12), (6, 5), (2, 20), (4, 2), vocab=VOCAB)
        return Opd(
            settings,
            config=config,
            teacher=teacher,
            vocabulary=Vocabulary(teacher, kept),
            module=random_module(config, seed=3),
            texts=texts,
            dev=make_texts((2, 10), (5, 6), seed=1, vocab=VOCAB),
            cache=TapCache(teacher, config.taps, states),
            out=out,
            ends=(END,),
        )

    return make


def block_logits(run: Opd, text, anchor: int) -> torch.Tensor:
    """[B - 1, V'] of one block, the context cut off before its anchor."""
    config = run.config
    taps = run.cache.states(text).taps[: anchor + 1]
    block = run.teacher.embedding[[text.tokens[anchor]] + [config.mask_token_id] * config.drafted]
    return run.module(taps[None], torch.tensor([[anchor]]), block[None, None], run.rope)[0, 0] @ run.vocabulary.head.T


def target_log_p(run: Opd, tokens) -> torch.Tensor:
    """The target's distribution of the token after ``tokens``, read as a text of its own."""
    final = run.teacher.states(tuple(tokens), run.config.taps).final[-1]
    return (final.bfloat16().float() @ run.vocabulary.head.T).log_softmax(-1)


def literal_loss(run: Opd, texts) -> torch.Tensor:
    """The paper's objective, one round after the other, one row after the other."""
    settings, sums = run.settings, {"accepted": [], "rejected": []}
    blocks = []
    for text in texts:
        place = text.prompt - 1
        while place < len(text.tokens) - 1:
            logits = block_logits(run, text, place)
            drafted = [KEPT[i] for i in logits.argmax(-1).tolist()]
            behind = text.tokens[place + 1 :]
            r = 0
            while r < min(len(drafted), len(behind)) and drafted[r] == behind[r]:
                r += 1
            chances = []
            for k in range(1, len(drafted) + 1):
                if k > len(behind):
                    break
                known = behind[k - 1] in KEPT
                prefix = text.tokens[: place + 1]
                if k > r + 1 and settings.suffix_teacher == "draft":
                    if END in drafted[r : k - 1]:
                        break
                    log_p = exact_suffix(run, (*prefix, *drafted[: k - 1]))
                elif not known or (k > r + 1 and settings.suffix_teacher == "none"):
                    chances.append(None)
                    continue
                else:
                    log_p = target_log_p(run, (*prefix, *behind[: k - 1]))
                log_q = logits[k - 1].log_softmax(-1)
                chances.append((0.5 * (log_p.exp() - log_q.exp()).abs().sum()).neg() + 1)
                forward = (log_p.exp() * (log_p - log_q)).sum()
                reverse = (log_q.exp() * (log_q - log_p)).sum()
                if known:
                    hard = functional.cross_entropy(logits[k - 1][None], torch.tensor([KEPT.index(behind[k - 1])]))
                for name, weight, way, share in (
                    (
                        "accepted",
                        float(k <= r) or settings.correction * (k == r + 1),
                        settings.accepted_kl,
                        settings.hard,
                    ),
                    ("rejected", settings.gamma ** (k - 1) * (k > r), settings.rejected_kl, 0.0),
                ):
                    if weight:
                        value = forward if way == "forward" else reverse
                        value = (1 - share) * value + (share * hard if share else 0)
                        sums[name].append((weight, value))
            usable = []
            for chance in chances:
                if chance is None:
                    break
                usable.append(chance)
            if usable:
                product, reached = 1.0, 0.0
                for chance in usable:
                    product = product * chance
                    reached = reached + product
                blocks.append(1 - reached / len(usable))
            place += r + 1
    if settings.loss == "tv":
        return sum(blocks) / len(blocks)
    if settings.aggregate == "pooled":
        rows = [(w * getattr(settings, f"{name}_weight"), v) for name, part in sums.items() for w, v in part]
        return sum(w * v for w, v in rows) / sum(w for w, _ in rows)
    top, bottom = 0.0, 0.0
    for name, rows in sums.items():
        share = getattr(settings, f"{name}_weight")
        if rows and share:
            top = top + share * sum(w * v for w, v in rows) / sum(w for w, _ in rows)
            bottom += share
    return top / bottom


def exact_suffix(run: Opd, tokens) -> torch.Tensor:
    """Like ``target_log_p``, of states that no cache has rounded."""
    return (run.teacher.states(tuple(tokens), (1,)).final[-1] @ run.vocabulary.head.T).log_softmax(-1)


CASES = {
    "paper": OpdSettings(suffix_teacher="draft", **SMALL),
    "trajectory": OpdSettings(**SMALL),
    "none": OpdSettings(suffix_teacher="none", **SMALL),
    "pooled": OpdSettings(aggregate="pooled", correction=1.0, rejected_weight=2.0, **SMALL),
    "hard": OpdSettings(hard=0.4, correction=0.5, **SMALL),
    "tv": OpdSettings(loss="tv", suffix_teacher="draft", **SMALL),
    **{name: ablated(OpdSettings(**SMALL), name) for name in ABLATIONS if name != "random-anchors"},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_a_step_is_the_literal_objective(make_opd, tmp_path: Path, settings: OpdSettings) -> None:
    run = make_opd(tmp_path, settings)
    made = run.teach(run.texts, torch.Generator())
    ours = {name: p.grad.clone() for name, p in run.module.named_parameters()}
    run.module.zero_grad()
    literal = literal_loss(run, run.texts)
    literal.backward()
    torch.testing.assert_close(made.loss, literal.detach(), rtol=1e-4, atol=1e-5)
    for name, parameter in run.module.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=2e-3, atol=2e-5, msg=name)


def test_a_teacher_one_token_off_would_be_seen(make_opd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The off-by-one of another implementation: the states after one more drafted token."""
    settings = CASES["paper"]
    right = make_opd(tmp_path, settings)
    right.teach(right.texts, torch.Generator())
    wrong = make_opd(tmp_path, settings)
    behind = wrong.teacher.behind
    monkeypatch.setattr(wrong.teacher, "behind", lambda *given: [states.roll(-1, 0) for states in behind(*given)])
    wrong.teach(wrong.texts, torch.Generator())
    assert not torch.allclose(right.module.fc.weight.grad, wrong.module.fc.weight.grad, rtol=1e-3)


def test_random_anchors_are_as_many_and_elsewhere(make_opd, tmp_path: Path) -> None:
    run = make_opd(tmp_path, ablated(OpdSettings(**SMALL), "random-anchors"))
    text = run.texts[3]
    (plan,), _ = run._plans([text], torch.Generator().manual_seed(0))
    (plain,), _ = make_opd(tmp_path, OpdSettings(**SMALL))._plans([text], torch.Generator().manual_seed(0))
    assert len(plan.rounds.anchor) == len(plain.rounds.anchor) == plain.decoded
    assert plan.rounds.anchor.tolist() != plain.rounds.anchor.tolist()
    assert sorted(set(plan.rounds.anchor.tolist())) == plan.rounds.anchor.tolist()


@pytest.mark.parametrize("teacher", ["draft", "trajectory"])
def test_a_resumed_run_is_the_same_bit_for_bit(make_opd, tmp_path: Path, teacher: str) -> None:
    settings = OpdSettings(suffix_teacher=teacher, **SMALL)

    def train(run: Opd, stop_at: int | None = None) -> Opd:
        run.run(lambda progress: None, lambda: run.progress.step == stop_at, 2, 3)
        return run

    whole = train(make_opd(tmp_path / "whole", settings))
    train(make_opd(tmp_path / "cut", settings), stop_at=2)
    after = make_opd(tmp_path / "cut", settings)
    assert after.progress.step == 2
    train(after)
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, after.module.state_dict()[name]), name
    assert after.progress.flops == whole.progress.flops
    assert after.progress.flops.target > 0
    assert after.progress.figures == whole.progress.figures


def test_nothing_to_teach_moves_nothing(make_opd, toy, make_texts, tmp_path: Path) -> None:
    """A draft whose vocabulary has no token of the texts has two empty streams."""
    run = make_opd(tmp_path, OpdSettings(correction=1.0, **SMALL), kept=[5, 0])
    text = make_texts((3, 9), vocab=VOCAB)[0]
    texts = [type(text)(tuple(1 + token % 4 for token in text.tokens), 3)]
    made = run.teach(texts, torch.Generator())
    assert (made.labels, made.loss.item()) == (0, 0.0)
    assert all(not p.grad.any() for p in run.module.parameters() if p.grad is not None)
