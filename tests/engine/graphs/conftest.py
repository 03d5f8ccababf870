"""What stands in for a GPU's graphs: twins that are ops of torch throughout, and a tape that plays ops again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from redraft.drafts.adversarial import TwinSiblingDrafter
from redraft.drafts.base import Drafter
from redraft.drafts.checkpoint import read_draft
from redraft.drafts.dflash import DFlashDrafter
from redraft.drafts.eagle3 import Eagle3Drafter
from redraft.drafts.merged import MergedDrafter
from redraft.drafts.ngram import NgramDrafter
from redraft.drafts.none import NoDrafter
from redraft.kernels.adjust import PRODUCED
from redraft.kernels.compact_kv import compact_kv_twin
from redraft.kernels.paged_attention import PagedTwin
from redraft.kernels.rows import Rows
from redraft.kernels.sample import sample_twin
from redraft.kernels.tree_attention import Attention
from redraft.server.engine.engine import Engine
from redraft.server.engine.prefill_table import Chunk
from redraft.server.engine.round import Plan, Ran, run_prefill, run_round
from redraft.server.engine.rows_plan import recorded_rows
from redraft.server.engine.state import DeviceState
from redraft.server.engine.target.decoder import Target
from redraft.server.engine.target.spec import read_spec
from redraft.server.engine.target.weights import head_tensor, load_weights

SLOTS, NODES, POSITIONS = 3, 7, 300
END, DRAWN = 68, 70
CPU = torch.device("cpu")
TEXTS = ([5, 9, 5, 9, 5, 9, 5, 9] * 15 + [5, 9, 5], list(range(20, 60)))
"""The first one's round crosses a page, and both repeat themselves or count up, so that lookup finds something."""
PLAN = Plan(rows=12, context_bound=140, requests=2, sampled=True, filtered=True)


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain torch throughout: what a GPU's kernels are measured by, and what a dispatch mode can see."""
    monkeypatch.setattr("redraft.kernels.linear.prepacks", lambda device, dtype: False)
    monkeypatch.setattr("redraft.kernels.layer_ops.load_fused", lambda: None)
    monkeypatch.setattr("redraft.kernels.attention.load_fused", lambda: None)
    monkeypatch.setattr("redraft.kernels.trees_cpu.load_fused", lambda: None)
    monkeypatch.setattr("redraft.kernels.vocab_cpu.load_fused", lambda: None)
    monkeypatch.setattr("redraft.server.engine.round.sample", sample_twin)
    monkeypatch.setattr("redraft.server.engine.round.compact_kv", compact_kv_twin)


class Tape(TorchDispatchMode):
    """Notes ops as they run, and runs them again on the tensors that they had."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.ops.append((func, args, kwargs or {}, made))
        return made

    def play(self) -> None:
        for func, args, kwargs, made in self.ops:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    assert old.shape == new.shape
                    old.copy_(new)


@pytest.fixture
def tape() -> type[Tape]:
    return Tape


class Recording:
    """Records an engine's passes as a GPU does: nothing that is declared changes while something is recorded."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        engine.make_attention = attention
        engine.graphs.make_recorder = lambda: self
        engine.pacer.recorded = recorded_rows(engine.pacer.most_rows, weights=1)
        self.recorded = self.launched = 0
        """Recordings, and how often they were played."""

    def __call__(self, run: Callable[[], Any]) -> Callable[[], Any]:
        self.recorded += 1
        tape, declared = Tape(), [*parts(self.engine.state).values(), *parts(self.engine.drafter).values()]
        before = [tensor.clone() for tensor in declared]
        with tape:
            made = run()
        for tensor, value in zip(declared, before, strict=True):
            tensor.copy_(value)

        def launch() -> Any:
            self.launched += 1
            tape.play()
            # as the copies to the host that a GPU makes before the next launch
            return copy.deepcopy(made)

        return launch


@pytest.fixture
def recording() -> type[Recording]:
    return Recording


def attention(rows: Rows, page_table: Tensor, position_bound: int, head_dim: int) -> Attention:
    """The twin of the GPU's attention."""
    return PagedTwin(rows, page_table, position_bound)


def parts(thing: Any) -> dict[str, Tensor]:
    """All tensors that an object or a tuple holds."""
    if isinstance(thing, Tensor):
        return {"": thing}
    if is_dataclass(thing):
        named = {field.name: getattr(thing, field.name) for field in fields(thing)}
    else:
        named = vars(thing) if hasattr(thing, "__dict__") else dict(enumerate(thing)) if type(thing) is tuple else {}
    return {f"{name}.{inner}": tensor for name, part in named.items() for inner, tensor in parts(part).items()}


class NoFives:
    """Grammars that allow all but token 5 (``parts.Allow``), and can say nothing of nodes far behind the root."""

    def see(self, rows: Rows) -> None:
        self.index = rows.index

    def write(self, allowed: Tensor, left_out: Tensor) -> None:
        allowed[:, 0].fill_(~(1 << 5))
        left_out.copy_(self.index > 2)


class Setting:
    """A target, a drafter, and a state in which two requests decode and a third may be prefilled.

    The two ask for everything that a plan can have; rounds that leave it out do not see that.
    """

    def __init__(self, folder: Path, make: Callable[[Setting], Drafter]) -> None:
        self.spec = read_spec(folder)
        weights = load_weights(folder, self.spec, CPU, torch.float32)
        self.embedding, self.head = weights.embedding, head_tensor(folder, self.spec, weights)
        self.target = Target(self.spec, weights, POSITIONS)
        self.drafter: Drafter = NoDrafter()
        self.drafter = make(self)
        sizes = {"slots": SLOTS, "pages": 6, "max_model_len": 200, "tree_rows": 40, "prefill": 168}
        self.state = DeviceState(self.spec, CPU, torch.float32, context=self.drafter.context, forced=3, **sizes)
        self.state.adjusting.reserve()
        self.state.masks.reserve()
        self.fill(TEXTS)
        self.snapshot = {name: tensor.clone() for name, tensor in parts(self.state).items()}

    def fill(self, texts: tuple[list[int], ...], lengths: tuple[int, ...] = ()) -> None:
        """Write texts, parameters and pages, and prefill; ``lengths`` overrides where texts end."""
        state = self.state
        state.page_table[:SLOTS, :2] = torch.tensor([[5, 2], [3, 6], [1, 4]])
        for slot, text in enumerate((*texts, [7, 8, 9, 10, 11, 12])):
            state.tokens[slot, : len(text)] = torch.tensor(text)
            state.length[slot] = lengths[slot] if slot < len(lengths) else len(text)
        state.limit.fill_(200)
        state.most_nodes.copy_(torch.tensor([4, 3, NODES, 0]))
        state.trust.fill_(1.0)
        state.sampling.temperature.copy_(torch.tensor([0.0, 0.9, 0.0, 0.0]))
        state.sampling.top_p.fill_(0.95)
        state.sampling.seed.copy_(torch.tensor([1, -3, 5, 0]))
        state.active.copy_(torch.tensor([True, True, False, False]))
        state.set_asked((0, 1))
        state.set_forced({0: [9, 9], 1: [DRAWN] * 3})
        self._adjust(texts)
        chunks = tuple(Chunk(slot, 0, int(state.length[slot]) - 1) for slot in range(len(texts)))
        rows = sum(chunk.count for chunk in chunks) + 2
        plan = Plan(0, 0, 0, False, False, prefill=rows, prefill_bound=140)
        state.prefill.write(chunks, rows)
        run_prefill(state, self.target, self.drafter, plan, attention)
        state.prefill.write([Chunk(2, 0, 5)], 6)

    def _adjust(self, texts: tuple[list[int], ...]) -> None:
        """The first is drawn to what it has said, the other by a bias, which would end it, but it may not yet."""
        adjusting = self.state.adjusting
        penalties, bias = adjusting.penalties, adjusting.bias
        assert penalties is not None
        assert bias is not None
        penalties.frequency[0], penalties.presence[0], penalties.repetition[0] = -0.5, 0.25, 1.5
        penalties.count.zero_()
        penalties.count[0] = PRODUCED * torch.bincount(torch.tensor(texts[0]), minlength=self.spec.vocab)
        bias.token[1], bias.value[1] = DRAWN, 30.0
        bias.token[1, 0], bias.value[1, 0] = END, 40.0
        adjusting.ends[:, 0], adjusting.until[:2] = END, 200

    def restore(self) -> None:
        """The declared state as it was, in the tensors that it is in."""
        for name, tensor in parts(self.state).items():
            tensor.copy_(self.snapshot[name])
        for name, tensor in parts(self.drafter).items():
            # scratch: kernels/ngram.py
            if "_newest" in name:
                tensor.fill_(12_345)

    def round(self, plan: Plan, chunks: tuple[Chunk, ...] = ()) -> Ran:
        """Run one."""
        return run_round(self.state, self.target, self.drafter, plan, attention, NoFives(), chunks)

    def run(self, plan: Plan, around: AbstractContextManager[Any]) -> dict[str, Tensor]:
        """Copies of everything that a round leaves behind or returns."""
        with around:
            result = self.round(plan)
        return {name: tensor.clone() for name, tensor in parts((self.state, *result)).items()}


@pytest.fixture
def make_setting(random_target: Callable[[str], Path], random_draft: Callable[..., Path]) -> Callable[..., Setting]:
    """A setting with a drafter by kind, or with one that is given."""
    folder = random_target("llama")

    def drafter(setting: Setting, kind: str) -> Drafter:
        vocab = setting.spec.vocab
        if kind == "none":
            return NoDrafter()
        if kind == "ngram":
            return NgramDrafter(SLOTS, vocab, CPU, NODES)
        if kind == "twin-siblings":
            return TwinSiblingDrafter(decoded(folder), NODES)
        if kind == "eagle3":
            checkpoint = read_draft(random_draft(folder, kind="eagle3", kept=range(0, 300, 2)))
            return Eagle3Drafter(checkpoint, setting.embedding, POSITIONS, NODES)
        checkpoint = read_draft(random_draft(folder, kept=range(0, 300, 2), selector_rank=8))
        draft = DFlashDrafter(checkpoint, setting.embedding, setting.head, POSITIONS, NODES, own_tokens=4)
        return draft if kind == "dflash" else MergedDrafter(draft, NgramDrafter(SLOTS, vocab, CPU, NODES))

    def make(kind: str | Drafter) -> Setting:
        return Setting(folder, lambda setting: drafter(setting, kind) if isinstance(kind, str) else kind)

    return make


def decoded(folder: Path) -> Tensor:
    """[S+1, T] the texts and what plain decoding goes on with."""
    setting = Setting(folder, lambda _: NoDrafter())
    for _ in range(NODES + 1):
        setting.round(PLAN)
    return setting.state.tokens.clone()
