"""Memory that passes take: the dry run takes as much as any step of an engine that is asked for everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from redraft.benchmarks import tiny
from redraft.server.engine import dry_run, load
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.round import Plan
from redraft.server.engine.rows_plan import recorded_rows
from redraft.server.engine.types import RedraftError, Request, SamplingParams

SLOTS = 3


@pytest.fixture(autouse=True)
def _twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU has no compiled C; what the twins hold is nearer to what its kernels and torch hold there."""
    monkeypatch.setattr("redraft.kernels.vocab_cpu.load_fused", lambda: None)


def storages(values: object) -> Iterator[torch.UntypedStorage]:
    """Of the tensors in ``values``; weights laid out for a CPU's products have none to see."""
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor) and not leaf.is_mkldnn:
            yield leaf.untyped_storage()


class Allocated(TorchDispatchMode):
    """Bytes of tensors that were made inside and live, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._living: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        known = {storage._cdata for storage in storages((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for storage in storages(made):
            if storage._cdata not in known:
                self._living[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._living = {name: entry for name, entry in self._living.items() if not entry[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._living.values()))
        return made


def allocated(run: Callable[[], object]) -> int:
    with Allocated() as mode:
        run()
    return mode.most


@pytest.fixture(scope="module")
def config(quick_config: Callable[..., EngineConfig], tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    """Of a target whose logits take more than all else, as a large vocabulary's do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "VOCAB", 8192)
        folder = tiny.make_tiny_target(tmp_path_factory.mktemp("wide") / "wide")
    return quick_config(target=str(folder), max_num_seqs=SLOTS, max_model_len=600, max_num_batched_tokens=256)


def everything(number: int) -> Request:
    params = SamplingParams(
        max_tokens=40,
        temperature=1.0,
        seed=number,
        top_p=0.9,
        top_k=50,
        min_p=0.01,
        presence_penalty=1.0,
        logit_bias=((9, 1.0),),
        min_tokens=30,
        logprobs=20,
        prompt_logprobs=20,
    )
    # texts that repeat themselves, so that lookup has whole trees to offer
    return Request(str(number), tuple(30 + i % 7 for i in range(120 + 200 * number)), params, reuse=False)


def steps(engine: Engine) -> int:
    """The most that a step takes of requests that ask for everything, some prefilled beside the others' rounds."""
    most = 0
    for number in range(SLOTS):
        engine.submit(everything(number))
        for _ in range(4):
            most = max(most, allocated(engine.step))
    while engine.busy:
        most = max(most, allocated(engine.step))
    return most


def measured(engine: Engine, taken: dry_run.Taken = allocated, recorded: int = 0) -> int:
    state = engine.state
    small = type(state)(
        engine.target.spec,
        state.device,
        state.kv.dtype,
        slots=SLOTS,
        pages=dry_run.PAGES,
        max_model_len=600,
        tree_rows=state.positions - 600,
        prefill=state.prefill.rows,
        forced=state.forced.shape[1],
    )
    with torch.inference_mode():
        return dry_run.workspace(
            small,
            engine.target,
            engine.drafter,
            engine.make_attention,
            engine.pacer.most_rows,
            recorded=recorded,
            taken=taken,
        )


def test_no_step_takes_more_than_the_dry_run(config: EngineConfig):
    engine = build_engine(config)
    needed, most = measured(engine) - dry_run.SPARE, steps(engine)
    assert most <= needed <= 2 * most


def test_recorded_rounds_have_memory_of_their_own(config: EngineConfig):
    sizes = iter((1000, 1000, 10))

    def taken(run: Callable[[], None]) -> int:
        run()
        return next(sizes)

    engine = build_engine(config)
    assert [measured(engine, taken, recorded) - dry_run.SPARE for recorded in (0, 256)] == [1000, 1010]


def test_no_recorded_pass_takes_more_than_was_measured_for_them(config: EngineConfig):
    engine, needed, seen = build_engine(config), list[int](), dict[bool, int]()

    def taken(run: Callable[[], None]) -> int:
        needed.append(allocated(run))
        return 0

    run = engine.graphs.run

    def noted(plan: Plan) -> Any:
        with Allocated() as mode:
            made = yield from run(plan)
        seen[plan.prefill > 0] = max(seen.get(plan.prefill > 0, 0), mode.most)
        return made

    measured(engine, taken, recorded_rows(256, 1))
    engine.graphs.make_recorder, engine.graphs.run = lambda: lambda run: run, noted
    engine.pacer.recorded = recorded_rows(256, 1)
    for number in range(SLOTS):
        request = everything(number)
        engine.submit(replace(request, params=replace(request.params, prompt_logprobs=None)))
        for _ in range(4):
            engine.step()
    while engine.busy:
        engine.step()
    plans = [plan for _, plan in (*engine.graphs.recorded, *engine.graphs.seen)]
    assert any(plan.prefill for plan in plans)
    assert all(plan.scored for plan in plans if plan.rows)
    everything_at_once, recordings = needed
    assert 0 < max(seen.values()) <= recordings <= everything_at_once


def test_too_little_memory_for_a_pass_names_what_to_change(config: EngineConfig):
    def taken(run: Callable[[], None]) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with pytest.raises(RedraftError, match=r"passes of 256 rows .* 2.00 GiB. .*--max-num-batched-tokens"):
        measured(build_engine(config), taken)


def test_what_passes_take_is_kept_from_the_pages(config: EngineConfig, monkeypatch: pytest.MonkeyPatch):
    """With memory for a few pages behind what is measured, there are few."""
    config = replace(config, max_model_len=256, max_num_seqs=128)
    memory, left = 2**30, 12 * 2**20
    monkeypatch.setattr(load, "available_bytes", lambda *_: memory)
    plenty = build_engine(config).state.kv
    ran = []
    monkeypatch.setitem(load.TAKEN, "cpu", lambda run: ran.append(run()) or memory - dry_run.SPARE - left)
    few = build_engine(config).state.kv
    assert len(ran) == 1
    assert few.nbytes < left < plenty.nbytes
