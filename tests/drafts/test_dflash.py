"""Serving a DFlash draft: its logits are training's, its context may come in pieces, its trees are of its marginals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.drafts.base import Bounds, DraftState, Passed
from redraft.drafts.checkpoint import read_draft, write_draft
from redraft.drafts.dflash import DFlashDrafter
from redraft.drafts.dflash_config import DFlashConfig, DraftError
from redraft.drafts.training.module import DFlashModule, rope_for
from redraft.kernels.block_tree import block_tree
from redraft.kernels.fused_cpu import load_fused
from redraft.kernels.rows import cells
from redraft.kernels.sample import SamplingTable, sample

VOCAB, HIDDEN, BLOCK, PAGE, POSITIONS = 97, 32, 5, 128, 300
KEPT = tuple(range(1, VOCAB, 2))
LENGTHS = {0: 1, 2: 127, 3: 254}
"""Tokens of the active slots: no context at all, and blocks that cross pages.  Slot 1 is free, 4 is the trash slot."""
PAGES = [[5, 8, 0], [0, 0, 0], [7, 2, 0], [9, 3, 6], [0, 0, 0]]


@pytest.fixture(autouse=True)
def _inference(one_thread: None) -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(params=["compiled", "torch"])
def _both_kinds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiled kernels and as with ``REDRAFT_FUSED_CPU=0``."""
    if request.param == "torch":
        monkeypatch.setattr("redraft.kernels.attention.load_fused", lambda: None)
        monkeypatch.setattr("redraft.kernels.layer_ops.load_fused", lambda: None)
    elif load_fused() is None:
        pytest.skip("no C compiler here, so there are no fused kernels")


class Bench:
    """A random draft, served and as a training module, with random texts and taps."""

    def __init__(self, folder: Path, *, pruned: bool = False, branch: int = 8, nodes: int = 9, **changes: Any) -> None:
        sizes: dict[str, Any] = {
            "layers": 2,
            "hidden": HIDDEN,
            "intermediate": 48,
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 16,
            "vocab": VOCAB,
            "norm_eps": 1e-5,
            "rope_theta": 1e4,
            "block_size": BLOCK,
            "mask_token_id": 3,
            "taps": (2, 0),
            "target_layers": 4,
            "draft_vocab": len(KEPT) if pruned else 0,
        }
        self.config = config = DFlashConfig(**(sizes | changes))
        torch.manual_seed(0)
        with torch.inference_mode(False):
            self.module = DFlashModule(config)
        for name, parameter in self.module.named_parameters():
            # norms of ones would hide that they were swapped
            mean, std = (1.0, 0.3) if "norm" in name else (0.0, parameter.shape[-1] ** -0.5)
            parameter.copy_(torch.randn(parameter.shape) * std + mean)
        self.embedding, self.head = torch.randn(VOCAB, HIDDEN), torch.randn(VOCAB, HIDDEN)
        self.vocabulary = torch.tensor(KEPT if pruned else range(VOCAB))
        write_draft(folder, config, self.module.state_dict(), KEPT if pruned else None, {}, torch.float32)
        self.drafter = DFlashDrafter(
            read_draft(folder), self.embedding, self.head, POSITIONS, nodes, "bench", branch=branch
        )
        slots = len(PAGES)
        self.taps = torch.randn(slots, POSITIONS, len(config.taps), HIDDEN)
        length = torch.zeros(slots, dtype=torch.int64)
        for slot, count in LENGTHS.items():
            length[slot] = count
        context = self.drafter.context
        shape = (context.layers, 2, 10 * PAGE, context.kv_heads, context.head_dim)
        self.state = DraftState(
            tokens=torch.randint(VOCAB, (slots, POSITIONS)),
            length=length,
            active=length > 0,
            page_table=torch.tensor(PAGES),
            kv=torch.full(shape, torch.nan),  # whatever no row may read would show
            sampling=SamplingTable.greedy(slots - 1, "cpu"),
        )
        self.bounds = Bounds(context=max(LENGTHS.values()), requests=len(LENGTHS), sampled=False)

    def absorb(self, slot: int, positions: list[int], padding: int = 0) -> None:
        """Let the drafter take in taps of ``slot``, with ``padding`` rows for the trash slot behind them."""
        position = torch.tensor(positions + [0] * padding)
        row_slot = torch.tensor([slot] * len(positions) + [len(PAGES) - 1] * padding)
        cell = cells(self.state.page_table, row_slot, position, PAGE)
        taps, token = self.taps[row_slot, position], self.state.tokens[row_slot, position]
        self.drafter.absorb(Passed(taps, token, position, cell, before=cell), self.state.kv)  # before is not read

    def fill(self) -> None:
        """All context before the anchors, in one pass a slot."""
        for slot, length in LENGTHS.items():
            if length > 1:
                self.absorb(slot, list(range(length - 1)))

    def reference(self, slot: int) -> Tensor:
        """Training's logits [B - 1, V'] of the block behind the anchor of ``slot``; all taps are there to be masked."""
        root = LENGTHS[slot] - 1
        block = self.embedding[self.config.mask_token_id].repeat(1, 1, self.config.block_size, 1)
        block[0, 0, 0] = self.embedding[self.state.tokens[slot, root]]
        rope = rope_for(self.config, POSITIONS, torch.device("cpu"))
        taps = self.taps[slot].flatten(1).unsqueeze(0)
        hidden = self.module(taps, torch.tensor([[root]]), block, rope)
        logits: Tensor = hidden[0, 0] @ self.head[self.vocabulary].T
        return logits

    def logits(self, slots: list[int]) -> Tensor:
        slot = torch.tensor(slots)
        anchor, root = self.state.anchor[slot, 0], (self.state.length[slot] - 1).clamp_min(0)
        return self.drafter._block(self.state, slot, anchor, root, self.bounds.context)


MakeBench = Callable[..., Bench]


@pytest.fixture
def make(tmp_path: Path) -> MakeBench:
    return lambda **options: Bench(tmp_path / "draft", **options)


@pytest.mark.usefixtures("_both_kinds")
@pytest.mark.parametrize("pruned", [False, True], ids=["full", "pruned"])
@pytest.mark.parametrize("causal", [False, True], ids=["open", "causal"])
def test_logits_are_those_of_the_training_module(make: MakeBench, causal: bool, pruned: bool) -> None:
    bench = make(causal=causal, pruned=pruned)
    bench.fill()
    got = bench.logits([3, 4, 0, 2])
    for number, slot in ((0, 3), (2, 0), (3, 2)):
        torch.testing.assert_close(got[number], bench.reference(slot), rtol=1e-5, atol=2e-5)


def test_causal_and_open_blocks_differ(make: MakeBench) -> None:
    """So that the switch is seen to be one: the last row sees the same either way, the others do not."""
    benches = [make(causal=causal, layers=1) for causal in (False, True)]
    for bench in benches:
        bench.fill()
    first, second = (bench.logits([2])[0] for bench in benches)
    assert (first[:-1] - second[:-1]).abs().amax(-1).min() > 0.01
    torch.testing.assert_close(first[-1], second[-1])


@pytest.mark.usefixtures("_both_kinds")
def test_the_tree_of_every_slot_is_that_of_its_marginals(make: MakeBench) -> None:
    bench = make(pruned=True, tree_temperatures=(0.7, 1.0, 1.5, 2.0), branch=3)
    bench.fill()
    drafted = bench.drafter.propose(bench.state, bench.bounds)
    scale = torch.tensor(bench.config.tree_temperatures).unsqueeze(1)
    for slot in LENGTHS:
        best = (bench.reference(slot) / scale).log_softmax(-1).topk(3)
        anchor = bench.state.anchor[slot]
        token, parent, score = block_tree(anchor, bench.vocabulary[best.indices][None], best.values[None], 9)
        assert torch.equal(drafted.token[slot], token[0])
        assert torch.equal(drafted.parent[slot], parent[0])
        torch.testing.assert_close(drafted.score[slot], score[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("branch", "nodes"), [(8, 9), (1, 9), (3, 63), (40, 5)])
@pytest.mark.parametrize("sampled", [False, True])
def test_protocol(make: MakeBench, branch: int, nodes: int, sampled: bool) -> None:
    bench = make(branch=branch, nodes=nodes, pruned=True)
    bench.fill()
    state, bounds = bench.state, Bounds(bench.bounds.context, 3, sampled)
    state.sampling.temperature[2:4] = 0.8 * sampled
    kept = [t.clone() for t in (state.tokens, state.length, state.active, state.page_table)]
    drafted = bench.drafter.propose(state, bounds)
    for tensor, dtype in ((drafted.token, torch.int64), (drafted.parent, torch.int64), (drafted.score, torch.float32)):
        assert tensor.shape == (len(PAGES), nodes + 1)
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
    active, number = list(LENGTHS), torch.arange(1, nodes + 1)
    assert drafted.token[active, 0].tolist() == state.anchor[active, 0].tolist()
    assert ((drafted.token >= 0) & (drafted.token < VOCAB)).all()
    assert (drafted.parent[:, 0] == 0).all()
    assert ((drafted.parent[:, 1:] < number) & (drafted.parent[:, 1:] >= 0)).all()
    assert (drafted.score[active, 0] == 1).all()
    assert (drafted.score[[1, 4]] == -torch.inf).all()
    assert (drafted.score <= drafted.score.gather(1, drafted.parent)).all()
    real = drafted.score[active, 1:] > -torch.inf
    assert real.sum(1).tolist() == [min(nodes, BLOCK - 1) if branch == 1 else nodes] * 3
    assert set(drafted.token[active, 1:][real].tolist()) <= set(KEPT)
    if branch == 1:
        assert (drafted.parent[active, 1:BLOCK] == torch.arange(BLOCK - 1)).all()
    for tensor, copy in zip((state.tokens, state.length, state.active, state.page_table), kept, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.usefixtures("_both_kinds")
def test_bounds_do_not_change_the_answer(make: MakeBench) -> None:
    bench = make()
    bench.fill()
    tight = bench.drafter.propose(bench.state, bench.bounds)
    loose = bench.drafter.propose(bench.state, Bounds(context=270, requests=4))
    for slot in LENGTHS:
        assert torch.equal(tight.token[slot], loose.token[slot])
        assert torch.equal(tight.parent[slot], loose.parent[slot])
    torch.testing.assert_close(tight.score, loose.score, rtol=1e-5, atol=0)


@pytest.mark.usefixtures("_both_kinds")
def test_context_may_come_in_pieces_and_in_any_order(make: MakeBench) -> None:
    whole, pieces = make(), make()
    whole.fill()
    for slot, length in LENGTHS.items():
        chunks = [list(range(start, min(start + 37, length - 1))) for start in range(0, length - 1, 37)]
        for chunk in reversed(chunks[:-1]):
            pieces.absorb(slot, chunk, padding=3)
        for position in chunks[-1] if chunks else []:
            pieces.absorb(slot, [position], padding=1)
    for slot, length in LENGTHS.items():
        at = torch.arange(length - 1)
        cell = cells(whole.state.page_table, torch.full_like(at, slot), at, PAGE)
        wanted = whole.state.kv[:, :, cell]
        assert wanted.isfinite().all()
        torch.testing.assert_close(pieces.state.kv[:, :, cell], wanted, rtol=1e-6, atol=1e-6)
        # nothing but the context has been written
        behind = cells(whole.state.page_table, torch.full((BLOCK,), slot), torch.arange(BLOCK) + length - 1, PAGE)
        assert pieces.state.kv[:, :, behind].isnan().all()


@pytest.mark.parametrize("pruned", [False, True], ids=["full", "pruned"])
def test_marginals_at_t0_are_the_whole_softmax_in_order(make: MakeBench, pruned: bool) -> None:
    temperatures = (0.5, 1.0, 2.0, 3.0)
    bench = make(pruned=pruned, branch=VOCAB, tree_temperatures=temperatures)
    vocab = len(bench.vocabulary)
    logits = torch.randn(2, BLOCK - 1, vocab) * 3
    slot, root = torch.tensor([3, 0]), torch.tensor([200, 0])
    token, log_probability = bench.drafter._marginals(bench.state, slot, root, logits, False)
    assert log_probability.shape == (2, BLOCK - 1, vocab)
    assert (log_probability.diff(dim=-1) <= 0).all()
    torch.testing.assert_close(log_probability.exp().sum(-1), torch.ones(2, BLOCK - 1))
    assert torch.equal(token.sort(-1).values, bench.vocabulary.expand_as(token))
    wanted = (logits / torch.tensor(temperatures)[:, None]).log_softmax(-1)
    back = torch.zeros(2, BLOCK - 1, VOCAB).scatter(-1, token, log_probability)[..., bench.vocabulary]
    torch.testing.assert_close(back, wanted)


def test_greedy_slots_are_the_same_beside_sampled_ones(make: MakeBench) -> None:
    bench = make()
    bench.fill()
    alone = bench.drafter.propose(bench.state, bench.bounds)
    bench.state.sampling.temperature[3] = 0.9
    beside = bench.drafter.propose(bench.state, Bounds(bench.bounds.context, 3, True))
    for slot in (0, 2):
        assert torch.equal(alone.token[slot], beside.token[slot])
        torch.testing.assert_close(alone.score[slot], beside.score[slot])
    assert not torch.equal(alone.score[3], beside.score[3])


@pytest.mark.parametrize("temperature", [0.8, 1.3])
@pytest.mark.parametrize("temperatures", [(), (0.6, 1.0, 1.7, 3.0)])
def test_a_draft_that_knows_the_logits_ranks_the_sampled_token_first(
    make: MakeBench, temperature: float, temperatures: tuple[float, ...]
) -> None:
    """The noise is keyed by seed, index of the token produced and token id: both sides must mean the same by them."""
    bench = make(pruned=True, tree_temperatures=temperatures)
    state, slots = bench.state, [2, 0, 3]
    state.sampling.temperature[slots] = temperature
    state.sampling.seed[slots] = torch.tensor([-5, 2**62 + 3, 77])
    slot = torch.tensor(slots)
    root = state.length[slot] - 1
    logits = torch.randn(3, BLOCK - 1, len(KEPT)) * 3
    target = torch.full((3, BLOCK - 1, VOCAB), -1e4)
    target[..., list(KEPT)] = logits
    position = (root.unsqueeze(1) + torch.arange(BLOCK - 1)).flatten()
    chosen = sample(
        target.flatten(0, 1), slot.repeat_interleave(BLOCK - 1), position, state.sampling, sampled=True, filtered=False
    ).view(3, -1)
    token, score = bench.drafter._marginals(state, slot, root, logits, True)
    assert torch.equal(token[..., 0], chosen)
    assert not torch.equal(chosen, bench.vocabulary[logits.argmax(-1)]), "the noise decides some"
    assert (score.diff(dim=-1) <= 0).all()
    assert (score.exp().sum(-1) <= 1 + 1e-5).all()
    # another seed leans another way
    state.sampling.seed[slots] += 1
    assert not torch.equal(bench.drafter._marginals(state, slot, root, logits, True)[0][..., 0], chosen)


def test_a_draft_of_other_sizes_is_refused_with_both(make: MakeBench, tmp_path: Path) -> None:
    bench = make()
    checkpoint = read_draft(tmp_path / "draft")
    with pytest.raises(DraftError, match=r"97 tokens and hidden size 32, this one has 98 and 32"):
        DFlashDrafter(checkpoint, torch.zeros(98, HIDDEN), bench.head, POSITIONS, 3)
