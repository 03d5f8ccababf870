"""What a CUDA graph asks of the round, without one: replayed from the same declared state it does the same.

Declared are ``DeviceState`` and what a drafter was made with.  Between two runs another round dirties everything, and
all memory that is fresh in a run is filled with what nobody would take for a result.  That no value is read on the host
is test_round.py's; here shapes are looked at, op by op, for a captured graph has those of its capture.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from redraft.drafts.adversarial import TwinSiblingDrafter
from redraft.drafts.base import Bounds, Candidates, Drafter, DraftState
from redraft.drafts.checkpoint import read_draft
from redraft.drafts.dflash import DFlashDrafter
from redraft.drafts.eagle3 import Eagle3Drafter
from redraft.drafts.merged import MergedDrafter
from redraft.drafts.ngram import NgramDrafter
from redraft.drafts.none import NoDrafter
from redraft.kernels.compact_kv import compact_kv_twin
from redraft.kernels.paged_attention import PagedTwin
from redraft.kernels.rows import Rows
from redraft.kernels.sample import sample_twin
from redraft.kernels.tree_attention import Attention
from redraft.server.engine.prefill_table import Chunk
from redraft.server.engine.round import Plan, run_prefill, run_round
from redraft.server.engine.state import DeviceState
from redraft.server.engine.target.decoder import Target
from redraft.server.engine.target.spec import read_spec
from redraft.server.engine.target.weights import head_tensor, load_weights

SLOTS, NODES, POSITIONS = 3, 7, 300
CPU = torch.device("cpu")
TEXTS = ([5, 9, 5, 9, 5, 9, 5, 9] * 15 + [5, 9, 5], list(range(20, 60)))
"""The first one's round crosses a page, and both repeat themselves or count up, so that lookup finds something."""
PLAN = Plan(rows=12, context_bound=140, requests=2, sampled=True, filtered=True)
BESIDE = replace(PLAN, rows=8, prefill=6, prefill_bound=140)
KINDS = ("none", "ngram", "dflash", "eagle3", "dflash+ngram", "twin-siblings")


@pytest.fixture(autouse=True)
def _twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain torch throughout: what a GPU's kernels are measured by."""
    monkeypatch.setattr("redraft.kernels.linear.prepacks", lambda device, dtype: False)
    monkeypatch.setattr("redraft.kernels.layer_ops.load_fused", lambda: None)
    monkeypatch.setattr("redraft.kernels.attention.load_fused", lambda: None)
    monkeypatch.setattr("redraft.kernels.trees_cpu.load_fused", lambda: None)
    monkeypatch.setattr("redraft.kernels.vocab_cpu.load_fused", lambda: None)
    monkeypatch.setattr("redraft.server.engine.round.sample", sample_twin)
    monkeypatch.setattr("redraft.server.engine.round.compact_kv", compact_kv_twin)


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


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of what differs in a byte."""
    assert a.keys() == b.keys()
    return [name for name, tensor in a.items() if tensor.numpy().tobytes() != b[name].numpy().tobytes()]


class Setting:
    """A target, a drafter, and a state in which two requests decode and a third may be prefilled."""

    def __init__(self, folder: Path, make: Callable[[Setting], Drafter]) -> None:
        self.spec = read_spec(folder)
        weights = load_weights(folder, self.spec, CPU, torch.float32)
        self.embedding, self.head = weights.embedding, head_tensor(folder, self.spec, weights)
        self.target = Target(self.spec, weights, POSITIONS)
        self.drafter: Drafter = NoDrafter()
        self.drafter = make(self)
        sizes = {"slots": SLOTS, "pages": 6, "max_model_len": 200, "tree_rows": 40, "prefill": 168}
        self.state = DeviceState(self.spec, CPU, torch.float32, context=self.drafter.context, **sizes)
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
        state.most_nodes.fill_(NODES)
        state.trust.fill_(1.0)
        state.sampling.temperature.copy_(torch.tensor([0.0, 0.9, 0.0, 0.0]))
        state.sampling.top_p.fill_(0.95)
        state.sampling.seed.copy_(torch.tensor([1, -3, 5, 0]))
        state.active.copy_(torch.tensor([True, True, False, False]))
        chunks = tuple(Chunk(slot, 0, int(state.length[slot]) - 1) for slot in range(len(texts)))
        rows = sum(chunk.count for chunk in chunks) + 2
        plan = Plan(0, 0, 0, False, False, prefill=rows, prefill_bound=140)
        state.prefill.write(chunks, rows)
        run_prefill(state, self.target, self.drafter, plan, attention)
        state.prefill.write([Chunk(2, 0, 5)], BESIDE.prefill)

    def restore(self) -> None:
        """The declared state as it was, in the tensors that it is in."""
        for name, tensor in parts(self.state).items():
            tensor.copy_(self.snapshot[name])
        for name, tensor in parts(self.drafter).items():
            # scratch: kernels/ngram.py
            if "_newest" in name:
                tensor.fill_(12_345)

    def run(self, plan: Plan, around: AbstractContextManager[Any]) -> dict[str, Tensor]:
        """Copies of everything that a round leaves behind or returns."""
        with around:
            result = run_round(self.state, self.target, self.drafter, plan, attention)
        return {name: tensor.clone() for name, tensor in parts((self.state, *result)).items()}

    def dirty(self, plan: Plan) -> None:
        """A round from another state."""
        self.fill(([3, 4, 5, 6] * 20, [100, 101] * 40), (70, 33))
        self.state.sampling.temperature.fill_(1.3)
        self.run(plan, nullcontext())


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
        run_round(setting.state, setting.target, setting.drafter, PLAN, attention)
    return setting.state.tokens.clone()


def differing(setting: Setting, plan: Plan, poisoned: Callable[..., AbstractContextManager[Any]]) -> list[str]:
    """What two rounds from one state left differently, with another in between and fresh memory spoilt in two ways."""
    setting.restore()
    first = setting.run(plan, poisoned())
    setting.dirty(plan)
    setting.restore()
    return same(first, setting.run(plan, poisoned(1e30, 1_000_003)))


@pytest.mark.parametrize("plan", [PLAN, BESIDE], ids=["round", "with prefill"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_round_carries_no_state_but_the_declared(
    kind: str,
    plan: Plan,
    make_setting: Callable[..., Setting],
    poisoned: Callable[..., AbstractContextManager[Any]],
) -> None:
    setting = make_setting(kind)
    assert differing(setting, plan, poisoned) == []
    setting.restore()
    before = setting.state.length.clone()
    result = setting.run(plan, nullcontext())
    assert (setting.state.length > before).tolist() == [True, True, False, False]
    assert not any(tensor.isnan().any() for tensor in result.values() if tensor.is_floating_point())


def test_siblings_are_accepted_off_the_spine(make_setting: Callable[..., Setting]) -> None:
    """Else nothing would be compacted, and that much of the round not be looked at: depth 2 begins with node 3."""
    setting = make_setting("twin-siblings")
    setting.restore()
    committed = run_round(setting.state, setting.target, setting.drafter, PLAN, attention).committed
    assert int(committed.count.max()) > 2


class Remembering(NoDrafter):
    """A drafter with a state that nobody knows of: it scores by how often it was asked."""

    def __init__(self) -> None:
        self.asked = torch.ones(())

    def propose(self, state: DraftState, bounds: Bounds) -> Candidates:
        self.asked += 1
        tree = super().propose(state, bounds)
        return Candidates(tree.token, tree.parent, tree.score * self.asked)


class Careless(NoDrafter):
    """A drafter that reads what it did not write."""

    def propose(self, state: DraftState, bounds: Bounds) -> Candidates:
        tree = super().propose(state, bounds)
        return Candidates(tree.token, tree.parent, torch.maximum(tree.score, torch.empty_like(tree.score)))


@pytest.mark.parametrize("drafter", [Remembering, Careless])
def test_the_check_notices_what_is_carried_along(
    drafter: type[Drafter],
    make_setting: Callable[..., Setting],
    poisoned: Callable[..., AbstractContextManager[Any]],
) -> None:
    assert differing(make_setting(drafter()), PLAN, poisoned)


class Shapes(TorchDispatchMode):
    """Notes every op with the shapes and dtypes that it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = made if isinstance(made, tuple | list) else (made,)
        what = tuple((tuple(t.shape), t.dtype) for t in tensors if isinstance(t, Tensor))
        self.seen.append((str(func), what))
        return made


def shapes(setting: Setting, plan: Plan) -> tuple[list[Any], list[Any]]:
    """Of two rounds with one plan over different data."""
    setting.restore()
    one, two = Shapes(), Shapes()
    setting.run(plan, one)
    setting.fill(([3, 4, 5, 6] * 20, [100, 101] * 40), (70, 33))
    setting.state.sampling.temperature.zero_()
    setting.state.active[1] = False
    setting.run(plan, two)
    return one.seen, two.seen


@pytest.mark.parametrize("plan", [PLAN, BESIDE], ids=["round", "with prefill"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_plan_runs_the_same_ops_on_the_same_shapes(
    kind: str, plan: Plan, make_setting: Callable[..., Setting]
) -> None:
    one, two = shapes(make_setting(kind), plan)
    assert len(one) > 50
    assert one == two


class Choosy(NoDrafter):
    """A drafter whose work depends on what is active."""

    def propose(self, state: DraftState, bounds: Bounds) -> Candidates:
        state.tokens[state.active].sum()
        return super().propose(state, bounds)


def test_the_check_notices_shapes_that_follow_the_data(make_setting: Callable[..., Setting]) -> None:
    one, two = shapes(make_setting(Choosy()), PLAN)
    assert one != two
