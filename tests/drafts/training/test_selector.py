"""Training a selector: its loss written out, what it leaves alone, resuming, and that it helps where it can."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.training.blocks import Vocabulary, make_batch
from redraft.drafts.training.data import Text
from redraft.drafts.training.loss import IGNORE
from redraft.drafts.training.optimise import Optimiser
from redraft.drafts.training.selector import SelectorRun
from redraft.drafts.training.selector_settings import SelectorSettings
from redraft.drafts.training.tap_cache import TapCache

RANK = 3
SMALL: dict[str, Any] = {
    "steps": 6, "batch": 3, "micro_batch": 2, "anchors": 4, "candidates": 5, "rank": RANK, "dropout": 0.0,
    "warmup": 2, "decay_share": 0.5,
}  # fmt: skip
KEPT = tuple(range(0, 37, 2))


@pytest.fixture
def make(toy, make_config, random_module, make_texts) -> Callable[..., SelectorRun]:
    def make(out: Path, texts: list[Text] | None = None, kept: tuple[int, ...] | None = KEPT, **changes: Any):
        settings, teacher = SelectorSettings(**(SMALL | changes)), toy()
        config = make_config(draft_vocab=len(kept or ()), selector_rank=settings.rank)
        return SelectorRun(
            settings=settings,
            config=config,
            teacher=teacher,
            vocabulary=Vocabulary(teacher, kept),
            module=random_module(config),
            texts=texts or make_texts((3, 9), (1, 12), (6, 5), (2, 14), (4, 7)),
            dev=make_texts((2, 10), (5, 6), seed=1),
            cache=TapCache(teacher, config.taps, None),
            out=out,
        )

    return make


def train(run: SelectorRun, stop_at: int | None = None) -> bool:
    return run.run(lambda progress: None, lambda: run.progress.step == stop_at, 2, 2)


def literal(run: SelectorRun, batch: Any) -> Tensor:
    """Row by row; the loss's sum."""
    module, settings = run.module, run.settings
    before, after = (book.weight for book in (run.selector.predecessor_codebook, run.selector.successor_codebook))
    hidden = module(batch.taps, batch.anchor, batch.block, run.rope)
    total = torch.zeros(())
    for one, labels in zip(hidden.flatten(0, 1), batch.label.flatten(0, 1).tolist(), strict=True):
        reached = 1.0
        for depth, label in enumerate(labels):
            logits = run.vocabulary.head @ one[depth]
            if depth > 0 and label != IGNORE and labels[depth - 1] != IGNORE:
                best = logits.topk(settings.candidates).indices.tolist()
                if label in best:
                    leaning = torch.stack([logits[c] + before[labels[depth - 1]] @ after[c] for c in best])
                    lost = functional.cross_entropy(leaning[None], torch.tensor([best.index(label)]))
                    total = total + lost * (settings.alpha + (1 - settings.alpha) * reached)
            reached *= 0.0 if label == IGNORE else float(logits.softmax(-1)[label])
    return total


@pytest.mark.parametrize("kept", [KEPT, None], ids=["pruned", "full"])
def test_the_loss_is_the_formula(make, tmp_path: Path, kept) -> None:
    run = make(tmp_path, kept=kept)
    texts = list(run.texts)
    states = [run.cache.states(text) for text in texts]
    batch = make_batch(run.config, run.teacher, run.vocabulary, texts, states, [t.anchors for t in texts])
    made, _ = run._loss(batch, run._kept(range(len(texts)), batch))
    expected = literal(run, batch)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
    (got,) = torch.autograd.grad(made, run.selector.predecessor_codebook.weight)
    (wanted,) = torch.autograd.grad(expected, run.selector.predecessor_codebook.weight)
    assert wanted.any()
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_the_rest_of_the_draft_stays_as_it_is(make, tmp_path: Path) -> None:
    run = make(tmp_path)
    before = {name: tensor.clone() for name, tensor in run.module.state_dict().items()}
    assert train(run)
    changed = {name for name, tensor in run.module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"candidate_selector.{end}_codebook.weight" for end in ("predecessor", "successor")}
    assert run.progress.flops.draft > 0
    assert 0 < run.progress.figures["candidates"] <= 1


def test_nothing_else_trains_it(make_config, random_module) -> None:
    """So that zeros in place of missing gradients, as several processes have them, do not decay it."""
    module = random_module(make_config(selector_rank=RANK))
    names = set(Optimiser(module, "muon", 0.01, 0.1).names.values())
    assert names == {name for name in module.state_dict() if not name.startswith("candidate_selector")}


def test_resuming_changes_no_bit(make, tmp_path: Path) -> None:
    options = {"dropout": 0.5}
    whole, cut = make(tmp_path / "whole", **options), make(tmp_path / "cut", **options)
    assert train(whole)
    assert not train(cut, stop_at=3)
    after = make(tmp_path / "cut", **options)
    assert after.progress.step == 3
    assert train(after)
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, after.module.state_dict()[name]), name
    assert whole.progress.tau == after.progress.tau


def test_it_makes_drafts_longer_where_tokens_go_together(make, make_run, tmp_path: Path) -> None:
    """Words of three tokens, any word anywhere: a block cannot know which, and guesses each token by itself."""
    generator = torch.Generator().manual_seed(0)

    def text() -> Text:
        words = torch.randint(4, (10,), generator=generator).tolist()
        return Text((1, *(7 + 3 * word + place for word in words for place in range(3))), 1)

    texts, held_out = [text() for _ in range(60)], [text() for _ in range(20)]
    common = {"batch": 10, "micro_batch": 10, "anchors": 30}
    first = make_run(tmp_path / "sft", texts=texts, dev=held_out, steps=150, rate=0.02, **common)
    assert train(first)
    run = make(tmp_path / "selector", texts, None, steps=80, rate=0.05, candidates=16, **common)
    run.dev = held_out
    run.module.load_state_dict(run.module.state_dict() | first.module.state_dict())
    with torch.no_grad():
        run.selector.successor_codebook.weight.zero_()
    assert run.measure(run.dev) == first.measure(first.dev), "it begins without a say"
    assert train(run)
    assert run.measure(run.dev).tau > 1.08 * first.measure(first.dev).tau


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimiser": "muon"}, "optimiser must be one of adamw"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"candidates": 1}, "candidates must be at least 2"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"alpha": -0.1}, "dropout must lie in"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DraftError, match=message):
        SelectorSettings(**changes)
