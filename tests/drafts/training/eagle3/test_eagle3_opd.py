"""Draft-OPD of chains against a slow, literal re-derivation; resuming; counted operations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.divergence import Kl
from redraft.drafts.training.eagle3_divergence import own_head_divergence
from redraft.drafts.training.eagle3_opd import Eagle3Opd
from redraft.drafts.training.opd_settings import OpdSettings, ablated
from redraft.drafts.training.tap_cache import TapCache

VOCAB, END = 6, 4
KEPT = [0, 1, 2, 3, 4]
SMALL = {"steps": 4, "batch": 3, "micro_batch": 2, "rate": 1e-2, "warmup": 1}


@pytest.fixture
def make_opd(toy, eagle3_config, random_eagle3, make_texts):
    def make(out: Path, settings: OpdSettings, states: Path | None = None) -> Eagle3Opd:
        teacher = toy(vocab=VOCAB)
        config = eagle3_config(vocab=VOCAB, draft_vocab=len(KEPT), steps=3)
        return Eagle3Opd(
            settings,
            config=config,
            teacher=teacher,
            vocabulary=Vocabulary(teacher, KEPT),
            module=random_eagle3(config, seed=3),
            texts=make_texts((3, 14), (1, 12), (6, 5), (2, 20), (4, 2), vocab=VOCAB),
            dev=make_texts((2, 10), (5, 6), seed=1, vocab=VOCAB),
            cache=TapCache(teacher, config.taps, states),
            out=out,
            ends=(END,),
        )

    return make


def target_log_p(run: Eagle3Opd, tokens, exact: bool) -> torch.Tensor:
    """The target's distribution of the token after ``tokens``; unless ``exact``, of states that a cache has rounded."""
    final = run.teacher.states(tuple(tokens), run.config.taps).final[-1]
    return ((final if exact else final.bfloat16().float()) @ run.vocabulary.head.T).log_softmax(-1)


def literal_loss(run: Eagle3Opd, literal) -> tuple[torch.Tensor, int]:
    """The paper's objective, one round after the other, one row after the other; and how many suffix rows there are."""
    settings, depth = run.settings, run.config.steps
    slow = literal(run.module, run.teacher.embedding)
    slow.kept = KEPT
    sums: dict[str, list] = {"accepted": [], "rejected": []}
    blocks, suffixes = [], 0
    for text in run.texts:
        taps, place = run.cache.states(text).taps, text.prompt - 1
        while place < len(text.tokens) - 1:
            if place == 0:
                place += 1  # no chain: the target's own token is all of the round
                continue
            behind, before = text.tokens[place + 1 :], text.tokens[: place + 1]
            chain = slow.chain(text.tokens, taps, place)
            drafted = [slow.drafted(normed) for normed in chain]
            r = 0
            while r < min(depth, len(behind)) and drafted[r] == behind[r]:
                r += 1
            if settings.suffix_teacher == "trajectory":
                chain = slow.chain(text.tokens, taps, place, (*behind, *[0] * depth))
            chances = []
            for k in range(1, min(depth, len(behind)) + 1):
                known = behind[k - 1] in KEPT
                if k > r + 1 and settings.suffix_teacher == "draft":
                    if END in drafted[r : k - 1]:
                        break
                    log_p = target_log_p(run, (*before, *drafted[: k - 1]), exact=True)
                    suffixes += 1
                elif not known or (k > r + 1 and settings.suffix_teacher == "none"):
                    chances.append(None)
                    continue
                else:
                    log_p = target_log_p(run, (*before, *behind[: k - 1]), exact=False)
                    suffixes += k > r + 1
                logits = slow.of("lm_head", chain[k - 1])
                log_q = logits.log_softmax(-1)
                chances.append(1 - 0.5 * (log_p.exp() - log_q.exp()).abs().sum())
                ways = {
                    "forward": (log_p.exp() * (log_p - log_q)).sum(),
                    "reverse": (log_q.exp() * (log_q - log_p)).sum(),
                }
                value = ways[settings.accepted_kl]
                if settings.hard and known:
                    label = torch.tensor([KEPT.index(behind[k - 1])])
                    value = (1 - settings.hard) * value + settings.hard * functional.cross_entropy(logits[None], label)
                sums["accepted"].append((float(k <= r) or settings.correction * (k == r + 1), value))
                sums["rejected"].append((settings.gamma ** (k - 1) * (k > r), ways[settings.rejected_kl]))
            usable = chances[: chances.index(None)] if None in chances else chances
            if usable:
                product, reached = torch.ones(()), torch.zeros(())
                for chance in usable:
                    product = product * chance
                    reached = reached + product
                blocks.append(1 - reached / len(usable))
            place += r + 1
    if settings.loss == "tv":
        return sum(blocks) / len(blocks), suffixes
    shares = {"accepted": settings.accepted_weight, "rejected": settings.rejected_weight}
    if settings.aggregate == "pooled":
        rows = [(w * shares[name], v) for name, part in sums.items() for w, v in part]
        return sum(w * v for w, v in rows) / sum(w for w, _ in rows), suffixes
    means = {name: sum(w * v for w, v in rows) / sum(w for w, _ in rows) for name, rows in sums.items()}
    return sum(shares[name] * mean for name, mean in means.items()) / sum(shares.values()), suffixes


CASES = {
    "paper": OpdSettings(suffix_teacher="draft", **SMALL),
    "trajectory": OpdSettings(**SMALL),
    "none": OpdSettings(suffix_teacher="none", **SMALL),
    "pooled": OpdSettings(aggregate="pooled", correction=1.0, rejected_weight=2.0, suffix_teacher="draft", **SMALL),
    "hard": OpdSettings(hard=0.4, correction=0.5, **SMALL),
    "tv": OpdSettings(loss="tv", suffix_teacher="draft", **SMALL),
    "all-reverse": ablated(OpdSettings(**SMALL), "all-reverse"),
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_a_step_is_the_literal_objective(make_opd, literal, tmp_path: Path, settings: OpdSettings) -> None:
    run = make_opd(tmp_path, settings)
    made = run.teach(run.texts, torch.Generator())
    ours = {name: p.grad.clone() for name, p in run.module.named_parameters()}
    run.module.zero_grad()
    loss, suffixes = literal_loss(run, literal)
    assert (suffixes > 5) == (settings.suffix_teacher != "none")
    loss.backward()
    torch.testing.assert_close(made.loss, loss.detach(), rtol=1e-4, atol=1e-5)
    for name, parameter in run.module.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=2e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert made.labels > 20


@pytest.mark.parametrize("teacher", ["draft", "trajectory"])
def test_a_resumed_run_is_the_same_bit_for_bit(make_opd, tmp_path: Path, teacher: str) -> None:
    settings = OpdSettings(suffix_teacher=teacher, **SMALL)

    def train(run: Eagle3Opd, stop_at: int | None = None) -> Eagle3Opd:
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
    assert after.progress.figures == whole.progress.figures
    assert after.progress.tau is not None


def test_counted_operations(make_opd, tmp_path: Path) -> None:
    """One text a pass, so that nothing is padding which the proposals would count otherwise."""
    run = make_opd(tmp_path, OpdSettings(suffix_teacher="draft", **(SMALL | {"micro_batch": 1})))
    text = run.texts[3]
    run.cache.fill([text])
    with FlopCounterMode(display=False) as counter:
        made = run.teach([text], torch.Generator())
    assert made.flops.draft + made.flops.head == counter.get_total_flops()
    assert made.flops.target > 1000 * len(text.tokens)


def test_gradients_of_a_head_of_its_own() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(9, 8).requires_grad_(), torch.randn(7, 8).requires_grad_()
    target_head, teacher, row = torch.randn(7, 8), torch.randn(4, 8), torch.tensor([0, 3, 3, 1, 2, 2, 0, 1, 3])
    forward, reverse, hard, upstream = torch.rand(4, 9)
    label = torch.randint(7, (9,))
    made = own_head_divergence(hidden, head, target_head, teacher, row, Kl(forward, reverse, hard, label))
    log_p, log_q = (teacher @ target_head.T).log_softmax(-1)[row], (hidden @ head.T).log_softmax(-1)
    plain = (
        forward * (log_p.exp() * (log_p - log_q)).sum(-1)
        + reverse * (log_q.exp() * (log_q - log_p)).sum(-1)
        - hard * log_q.gather(1, label.unsqueeze(1)).squeeze(1)
    )
    torch.testing.assert_close(made, plain)
    ours = torch.autograd.grad((made * upstream).sum(), (hidden, head))
    for one, other in zip(ours, torch.autograd.grad((plain * upstream).sum(), (hidden, head)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_trees_are_refused(make_opd, tmp_path: Path) -> None:
    with pytest.raises(DraftError, match=r"--tree-nodes at 0"):
        make_opd(tmp_path, OpdSettings(tree_nodes=5, **SMALL))
