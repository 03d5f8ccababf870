"""Runs of several processes beside runs of one: test_together.py launches pytest on this file in two of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.eagle3_config import Eagle3Config
from redraft.drafts.training import run_state
from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.eagle3 import Eagle3
from redraft.drafts.training.eagle3_module import Eagle3Module
from redraft.drafts.training.eagle3_opd import Eagle3Opd
from redraft.drafts.training.eagle3_settings import Eagle3Settings
from redraft.drafts.training.opd import Opd
from redraft.drafts.training.opd_settings import OpdSettings
from redraft.drafts.training.run import Run
from redraft.drafts.training.selector import SelectorRun
from redraft.drafts.training.selector_settings import SelectorSettings
from redraft.drafts.training.tap_cache import TapCache
from redraft.drafts.training.together import ALONE, Together
from redraft.server.train_together import gathered

VOCAB, END = 6, 4
KEPT = [0, 1, 2, 3, 4]
SMALL: dict[str, Any] = {"steps": 4, "batch": 3, "micro_batch": 1, "rate": 1e-2, "warmup": 1}


@pytest.fixture(scope="session")
def together() -> Iterator[Together]:
    with gathered("cpu") as found:
        assert found.size == 2
        yield found


@pytest.fixture
def shared(together: Together, request: pytest.FixtureRequest) -> Path:
    """A folder of this test that all processes see."""
    return Path(os.environ["SHARED"]) / request.node.name


def train(run: Run, stop: Callable[[], bool] = lambda: False) -> bool:
    return run.run(lambda progress: None, stop, 2, 2)


def state(run: Run) -> dict[str, torch.Tensor]:
    return dict(run.module.state_dict()) | run.optimiser.tensors()


def assert_alike(run: Run, other: Run) -> None:
    """The same training up to the order of sums; every process holds it."""
    ours, theirs = state(run), state(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    a, b = run.progress, other.progress
    assert (a.step, a.labels, a.flops) == (b.step, b.labels, b.flops)
    assert (a.loss, a.norm) == (pytest.approx(b.loss, rel=1e-5), pytest.approx(b.norm, rel=1e-4))
    assert a.figures == pytest.approx(b.figures, rel=1e-4)


@pytest.mark.parametrize("changes", [{}, {"batch": 1}, {"batch": 8}, {"kept": KEPT, "soft": 1.0}], ids=str)
def test_sft(make_run, together: Together, tmp_path: Path, shared: Path, changes: dict[str, Any]) -> None:
    """With shares that differ, an empty one, and a text in two shares."""
    alone = make_run(tmp_path / "alone", micro_batch=1, **changes)
    run = make_run(shared, micro_batch=1, **changes)
    run.together = together
    assert train(alone)
    assert train(run)
    assert_alike(run, alone)
    if together.rank == 0:
        assert run.progress.tau == alone.progress.tau
        assert run_state.newest(shared).name == "step-00000006"
        assert len((shared / "log.jsonl").read_text().splitlines()) == 6
    else:
        assert run.progress.tau is None, "one process measures"


def test_selector(make_run, make_config, random_module, together: Together, tmp_path: Path, shared: Path) -> None:
    """Dropout too is the whole step's, and what is frozen stays so."""
    first = make_run(tmp_path / "first")
    config = make_config(selector_rank=3)

    def run(out: Path, together: Together) -> SelectorRun:
        settings = SelectorSettings(**(SMALL | {"rank": 3, "candidates": 5}))
        parts = (first.teacher, first.vocabulary, random_module(config), first.texts, first.dev, first.cache, out)
        return SelectorRun(settings, config, *parts, together=together)

    one, two = run(tmp_path / "alone", ALONE), run(shared, together)
    frozen = two.module.fc.weight.clone()
    assert train(one)
    assert train(two)
    assert_alike(two, one)
    assert torch.equal(two.module.fc.weight, frozen)


def test_states_on_disk_are_shared(make_run, together: Together, tmp_path: Path, shared: Path) -> None:
    alone = make_run(tmp_path / "alone", states=tmp_path / "states", micro_batch=1, batch=8)
    run = make_run(shared, states=shared / "states", micro_batch=1, batch=8)  # some text is in both shares
    run.together = together
    assert train(alone)
    assert train(run)
    assert_alike(run, alone)
    names = [sorted(path.name for path in folder.iterdir()) for folder in (tmp_path / "states", shared / "states")]
    assert names[0] == names[1]
    assert not run.cache.full


OPD: dict[str, dict[str, Any]] = {
    "trajectory": {},
    "draft": {"suffix_teacher": "draft"},
    "random": {"anchors": "random", "aggregate": "pooled"},
    "tv": {"loss": "tv"},
    "few": {"batch": 1, "suffix_teacher": "draft"},
}


@pytest.mark.parametrize("kind", OPD)
def test_opd(toy, make_config, random_module, make_texts, together, tmp_path: Path, shared: Path, kind: str) -> None:
    def make(out: Path, among: Together) -> Opd:
        teacher, config = toy(vocab=VOCAB), make_config(vocab=VOCAB, draft_vocab=len(KEPT))
        return Opd(
            OpdSettings(**(SMALL | OPD[kind])),
            config=config,
            teacher=teacher,
            vocabulary=Vocabulary(teacher, KEPT),
            module=random_module(config, seed=3),
            texts=make_texts((3, 14), (1, 12), (6, 5), (2, 20), (4, 2), vocab=VOCAB),
            dev=[],
            cache=TapCache(teacher, config.taps, None),
            out=out,
            together=among,
            ends=(END,),
        )

    alone, run = make(tmp_path / "alone", ALONE), make(shared, together)
    assert train(alone)
    assert train(run)
    assert_alike(run, alone)


@pytest.mark.parametrize("first", ["alone", "together"])
def test_a_run_goes_on_with_another_number_of_processes(make_run, together, tmp_path, shared, first: str) -> None:
    def run_of(among: Together) -> Run:
        made = make_run(shared, micro_batch=1)
        made.together = among
        return made

    whole = make_run(tmp_path / "whole", micro_batch=1)
    assert train(whole)
    if first == "alone":
        if together.rank == 0:
            cut = run_of(ALONE)
            assert not train(cut, lambda: cut.progress.step == 3)
        together.any(False)
    else:
        cut = run_of(together)
        assert not train(cut, lambda: together.rank == 1 and cut.progress.step == 3), "one process was asked to stop"
        assert cut.progress.step == 3
    after = run_of(together if first == "alone" else ALONE)
    assert after.progress.step == 3
    together.any(False)  # all have read it
    if first == "alone" or together.rank == 0:
        assert train(after)
        assert_alike(after, whole)
        assert after.progress.tau in (whole.progress.tau, None)
    together.any(False)


def test_an_error_of_the_main_process_ends_all(make_run, together, shared: Path, monkeypatch) -> None:
    def full(*args: object) -> None:
        raise DraftError("the disk is full")

    run = make_run(shared)
    run.together = together
    monkeypatch.setattr(run, "save", full)
    with pytest.raises(DraftError, match="the disk is full" if together.rank == 0 else "main process .* has failed"):
        train(run)
    assert run.progress.step == 2


def test_a_loss_that_is_not_finite_in_one_process_ends_all(make_run, together, shared: Path) -> None:
    run = make_run(shared)
    run.together = together
    if together.rank == 1:
        run.module.fc.weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(DraftError, match="not finite at step 0"):
        train(run)


def test_states_in_memory_count_where_they_are_made(make_run, make_texts, together, shared: Path) -> None:
    """Texts of one length change places in every pass, and with them the process that reads them."""
    run = make_run(shared, texts=make_texts(*[(3, 5)] * 5), dev=[], batch=5)
    run.cache.room, run.cache.keeps, run.together = 1 << 20, True, together
    assert train(run)
    reads = together.total(len(run.cache.resident))[0]
    assert reads > 5
    assert run.progress.flops.target == 1000 * 8 * reads == 1000 * together.total(8 * run.teacher.reads)[0]


@pytest.fixture
def make_eagle3(toy, make_texts):
    def make(out: Path, among: Together, settings: Eagle3Settings | OpdSettings) -> Run:
        teacher = toy(vocab=VOCAB)
        config = Eagle3Config(
            **{"hidden": 16, "intermediate": 24, "heads": 4, "kv_heads": 2, "head_dim": 6, "vocab": VOCAB},
            **{"norm_eps": 1e-5, "rope_theta": 50.0, "taps": (0, 2, 3), "target_layers": 6},
            **{"draft_vocab": len(KEPT), "steps": 3},
        )
        torch.manual_seed(3)
        module = Eagle3Module(config)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        parts: dict[str, Any] = {
            "config": config,
            "teacher": teacher,
            "vocabulary": Vocabulary(teacher, KEPT),
            "module": module,
            "texts": make_texts((3, 14), (1, 12), (6, 5), (2, 20), (4, 2), vocab=VOCAB),
            "dev": [],
            "cache": TapCache(teacher, config.taps, None),
            "out": out,
            "together": among,
        }
        if isinstance(settings, OpdSettings):
            return Eagle3Opd(settings, ends=(END,), **parts)
        return Eagle3(settings, **parts)

    return make


EAGLE3: dict[str, Eagle3Settings | OpdSettings] = {
    "eagle3": Eagle3Settings(**SMALL, depth=3),
    "eagle3-few": Eagle3Settings(**(SMALL | {"batch": 1}), depth=3),
    "eagle3-opd": OpdSettings(**SMALL, suffix_teacher="draft"),
}


@pytest.mark.parametrize("kind", EAGLE3)
def test_eagle3(make_eagle3, together: Together, tmp_path: Path, shared: Path, kind: str) -> None:
    alone, run = make_eagle3(tmp_path, ALONE, EAGLE3[kind]), make_eagle3(shared, together, EAGLE3[kind])
    assert train(alone)
    assert train(run)
    assert_alike(run, alone)
