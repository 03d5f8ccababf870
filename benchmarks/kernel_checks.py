"""Every op's Triton kernel against its plain-torch twin on random inputs: byte for byte, for all are made to be.

But for ``block_tree``'s scores, which are exponentials of the same costs by two libraries: ``SCORE`` apart at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from redraft.kernels import (
    accept,
    adjust,
    block_tree,
    compact_kv,
    cutoff,
    filters,
    merge_trees,
    ngram,
    noise,
    pack_tree,
    place_rows,
    sample,
    spread_trees,
)

Check = tuple[str, Callable[[], str | None]]
"""A name, and a function that returns what is wrong, None if nothing is."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the random inputs are."""

    vocab: int
    rows: int
    slots: int
    nodes: int
    """Nodes per slot, the root included."""
    page: int
    features: tuple[int, int, int]
    """Layers, KV heads, head dimension."""


SCORE = 2.0**-22
"""Of a number: two units in its last place, and as much again where the number is just above a power of two."""
QUICK = Sizes(vocab=300, rows=5, slots=3, nodes=6, page=16, features=(2, 2, 16))
FULL = Sizes(vocab=151936, rows=67, slots=8, nodes=16, page=128, features=(4, 8, 128))


def kernel_checks(sizes: Sizes, device: torch.device, seed: int = 0) -> Iterator[Check]:
    """All checks of the ops at ``sizes``; inputs are made when a check runs."""
    yield "gumbel", partial(_gumbel, sizes, Random(device, seed))
    for dtype in (torch.float32, torch.bfloat16):
        for sampled, filtered in ((False, False), (True, False), (True, True)):
            kind = "filtered" if filtered else "sampled" if sampled else "greedy"
            check = partial(_sample, sizes, Random(device, seed), dtype, sampled, filtered)
            yield f"sample {kind} {_short(dtype)}", check
    yield "cutoff swept", partial(_swept, sizes, Random(device, seed))
    for dtype in (torch.float32, torch.bfloat16):
        yield f"adjust {_short(dtype)}", partial(_adjust, sizes, Random(device, seed), dtype)
    yield "ngram", partial(_ngram, sizes, Random(device, seed))
    for paired in (False, True):
        yield f"block_tree{' paired' * paired}", partial(_block_tree, sizes, Random(device, seed), paired)
    yield "merge_trees", partial(_merge_trees, sizes, Random(device, seed))
    yield "spread_trees", partial(_spread_trees, sizes, Random(device, seed))
    yield "pack_tree", partial(_pack_tree, sizes, Random(device, seed))
    yield "pack_tree, block after block", partial(_pack_tree, replace(sizes, slots=45, nodes=47), Random(device, seed))
    yield "place_rows", partial(_place_rows, sizes, Random(device, seed))
    yield "accept", partial(_accept, sizes, Random(device, seed))
    for dtype in (torch.float32, torch.bfloat16):
        yield f"compact_kv {_short(dtype)}", partial(_compact_kv, sizes, Random(device, seed), dtype)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Random:
    """Random tensors that are the same on every device."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device = device
        self.generator = torch.Generator().manual_seed(seed)

    def ints(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator).to(self.device)


def _gumbel(sizes: Sizes, random: Random) -> str | None:
    seed, t = random.ints(-(2**62), 2**62, sizes.rows), random.ints(0, 10_000, sizes.rows)
    ids = random.ints(0, sizes.vocab, sizes.rows, 257)
    return difference(noise.gumbel_kernel(seed, t, ids), noise.gumbel_twin(seed, t, ids))


def sampling_inputs(
    sizes: Sizes, random: Random, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, sample.SamplingTable]:
    """Logits [R, V], slot [R] and position [R] of each row, and a table with greedy slots and every filter."""
    slots = sizes.slots
    slot = torch.arange(slots + 1, device=random.device)
    logits = (random.normal(sizes.rows, sizes.vocab) * 4).to(dtype)
    table = sample.SamplingTable(
        temperature=torch.where(slot % 4 == 1, 0.0, 0.2 + random.uniform(slots + 1)),
        top_p=torch.where(slot % 2 == 1, 1.0, 0.05 + 0.9 * random.uniform(slots + 1)),
        min_p=torch.where(slot % 3 == 0, 0.0, 0.2 * random.uniform(slots + 1)),
        top_k=torch.where(slot % 3 == 2, random.ints(1, 50, slots + 1), 0),
        seed=random.ints(-(2**62), 2**62, slots + 1),
    )
    return logits, random.ints(0, slots, sizes.rows), random.ints(0, 5000, sizes.rows), table


def _sample(sizes: Sizes, random: Random, dtype: torch.dtype, sampled: bool, filtered: bool) -> str | None:
    inputs = sampling_inputs(sizes, random, dtype)
    made = sample.sample_kernel(*inputs, sampled=sampled, filtered=filtered)
    return difference(made, sample.sample_twin(*inputs, sampled=sampled, filtered=filtered))


def _swept(sizes: Sizes, random: Random) -> str | None:
    """What few tokens that are listed say, and what sweeps say where more are left than can be listed."""
    logits, slot, _, table = sampling_inputs(sizes, random, torch.bfloat16)
    tables = (table.temperature, table.top_p, table.min_p, table.top_k)
    z = filters.scale_logits(logits, table.temperature[slot].clamp(min=filters.MIN_TEMPERATURE))
    key = filters.sort_key(z, torch.arange(sizes.vocab, device=random.device))
    listed, swept = (cutoff.cutoff_kernel(logits, slot, *tables, listed=listed) for listed in (cutoff.LISTED, 8))
    return difference(key >= swept[:, None], key >= listed[:, None])


def _ngram(sizes: Sizes, random: Random) -> str | None:
    width = 700
    # few different tokens, so that matches are many and long
    tokens = random.ints(0, 7, sizes.slots + 1, width)
    length = random.ints(1, width, sizes.slots + 1)
    active = random.ints(0, 4, sizes.slots + 1) > 0
    newest = torch.zeros(sizes.slots + 1, sizes.vocab, dtype=torch.int32, device=random.device)
    made, wanted = (
        op(tokens, length, active, newest.clone(), max_nodes=sizes.nodes - 1, context_bound=width)
        for op in (ngram.ngram_kernel, ngram.ngram_twin)
    )
    # what an inactive slot's candidates are is nobody's business but their scores'
    live = active[:, None]
    return difference(
        tuple(torch.where(live, part, 0) for part in made[:2]) + made[2:],
        tuple(torch.where(live, part, 0) for part in wanted[:2]) + wanted[2:],
    )


def forest(sizes: Sizes, random: Random) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    """Arguments of ``pack_tree``: random trees with equal siblings and scores, some candidates and slots absent."""
    slots, nodes = sizes.slots + 1, sizes.nodes
    parent = torch.stack([random.ints(0, max(i, 1), slots) for i in range(nodes)], 1)
    score = random.ints(1, 9, slots, nodes) / 8
    score = torch.where(random.ints(0, 6, slots, nodes) == 0, -torch.inf, score)
    active = random.ints(0, 4, slots) > 0
    active[-1] = False
    length = random.ints(1, 3 * sizes.page, slots)
    return random.ints(0, 3, slots, nodes), parent, score, active, length, slots * nodes * 2 // 3


def _block_tree(sizes: Sizes, random: Random, paired: bool) -> str | None:
    rows, depths, width = sizes.rows, sizes.nodes - 1, 8
    shape = (rows, depths, *(width,) * (1 + paired))
    # half of the rows in whole quarters, so that many products are tied
    tied = torch.arange(rows, device=random.device).view(-1, *(1,) * (len(shape) - 1)) % 2 == 0
    logprob = torch.where(tied, random.ints(-8, 1, *shape) / 4, (2 * random.normal(*shape)).log_softmax(-1))
    logprob = torch.where(random.ints(0, 9, *shape) == 0, -torch.inf, logprob)
    inputs = random.ints(0, sizes.vocab, rows), random.ints(0, sizes.vocab, rows, depths, width), logprob
    nodes = min(4 * sizes.nodes - 1, block_tree.MAX_NODES)
    made, wanted = (op(*inputs, nodes) for op in (block_tree.block_tree_kernel, block_tree.block_tree_twin))
    # the token of an absent node is any
    there = wanted[2] > -torch.inf
    found = difference(
        (torch.where(there, made[0], 0), made[1], made[2] > -torch.inf),
        (torch.where(there, wanted[0], 0), wanted[1], there),
    )
    apart = ((made[2] - wanted[2]).abs() > SCORE * wanted[2]).logical_and(there).sum()
    return found or (f"{int(apart)} scores of {int(there.sum())} are too far apart" if apart else None)


def _merge_trees(sizes: Sizes, random: Random) -> str | None:
    # each call draws another forest
    first, second = forest(sizes, random)[:3], forest(sizes, random)[:3]
    wanted = merge_trees.merge_trees_twin(first, second)
    if not ((wanted[2][:, sizes.nodes :] == -torch.inf) & (second[2][:, 1:] > -torch.inf)).any():
        return "no node gave way: the random trees are no test"
    return difference(merge_trees.merge_trees_kernel(first, second), wanted)


def _spread_trees(sizes: Sizes, random: Random) -> str | None:
    token, parent, score, active, length, _ = forest(sizes, random)
    trash = sizes.slots
    slot = (~active).to(torch.int8).argsort(stable=True)[: int(active.sum()) + 1]
    slot = torch.where(active[slot], slot, trash).flip(0)
    trees = tuple(part[: slot.shape[0]].contiguous() for part in (token, parent, score))
    inputs = (random.ints(0, sizes.vocab, trash + 1, 4 * sizes.page), length, active, slot, *trees)
    made, wanted = (op(*inputs) for op in (spread_trees.spread_trees_kernel, spread_trees.spread_trees_twin))
    return difference(tuple(part[:-1] for part in made), tuple(part[:-1] for part in wanted))


def _adjust(sizes: Sizes, random: Random, dtype: torch.dtype) -> str | None:
    tree = forest(sizes, random)
    rows, slots = pack_tree.pack_tree_twin(*tree), sizes.slots + 1
    logits = (random.normal(tree[-1], sizes.vocab) * 4).to(dtype)
    penalties = adjust.Penalties(
        presence=random.normal(slots),
        frequency=random.normal(slots),
        repetition=0.5 + random.uniform(slots),
        # half of the vocabulary in prompt or output
        count=(random.ints(0, 9, slots, sizes.vocab) * random.ints(0, 2, slots, sizes.vocab)).to(torch.int32),
    )
    allowed = random.ints(-(2**31), 2**31, tree[-1], -(-sizes.vocab // 32)).to(torch.int32)
    ids = torch.stack([random.ints(0, sizes.vocab // 8, slots) + n * (sizes.vocab // 8) for n in range(8)], 1)
    asked: dict[str, Any] = {
        "penalties": penalties,
        "bias": adjust.Bias(ids, random.normal(slots, 8)),
        "minimum": adjust.MinTokens(random.ints(0, 2, slots) * 4 * sizes.page, ids[:, :2]),
        "allowed": allowed,
    }
    return difference(adjust.adjust_kernel(logits, rows, **asked), adjust.adjust_twin(logits, rows, **asked))


def _pack_tree(sizes: Sizes, random: Random) -> str | None:
    inputs = forest(sizes, random)
    return difference(pack_tree.pack_tree_kernel(*inputs), pack_tree.pack_tree_twin(*inputs))


def _place_rows(sizes: Sizes, random: Random) -> str | None:
    rows = pack_tree.pack_tree_twin(*forest(sizes, random))
    table = random.ints(0, 2**20, sizes.slots + 1, 8)
    return difference(
        place_rows.place_rows_kernel(rows, table, sizes.page), place_rows.place_rows_twin(rows, table, sizes.page)
    )


def _accept(sizes: Sizes, random: Random) -> str | None:
    tree = forest(sizes, random)
    rows, active, length, count = pack_tree.pack_tree_twin(*tree), *tree[3:]
    choice = random.ints(0, 3, count)
    tokens = random.ints(0, 3, sizes.slots + 1, 4 * sizes.page)
    limit = length + random.ints(1, 4, sizes.slots + 1)
    # two columns of a wider table, as the round hands them over; the third would end everything
    ends = torch.tensor([2, -1, 0], device=random.device).expand(sizes.slots + 1, 3).contiguous()[:, :2]

    def run(op: Callable[..., accept.Committed]) -> tuple[object, ...]:
        state = [tensor.clone() for tensor in (tokens, length, active)]
        committed = op(rows, choice, state[0], state[1], limit, state[2], ends)
        # the trash slot's tokens may be scribbled on
        return committed, state[0][:-1], state[1][:-1], state[2][:-1]

    return difference(run(accept.accept_kernel), run(accept.accept_twin))


def _compact_kv(sizes: Sizes, random: Random, dtype: torch.dtype) -> str | None:
    tree = forest(sizes, random)
    rows, active, length, count = pack_tree.pack_tree_twin(*tree), *tree[3:]
    pages = 5
    table = torch.arange(1, sizes.slots * pages + 1, device=random.device).view(sizes.slots, pages).flip(0)
    table = torch.cat((table, torch.zeros_like(table[:1])))
    layers, heads, dim = sizes.features
    kv = random.normal(layers, 2, (sizes.slots * pages + 1) * sizes.page, heads, dim).to(dtype)
    tokens = random.ints(0, 3, sizes.slots + 1, 6 * sizes.page)
    limit = torch.full_like(length, 6 * sizes.page)
    ends = torch.full((sizes.slots + 1, 0), 2, device=random.device)
    committed = accept.accept_twin(rows, random.ints(0, 3, count), tokens, length.clone(), limit, active, ends)
    made, wanted = kv.clone(), kv.clone()
    compact_kv.compact_kv_kernel(made, table, rows, committed, sizes.page)
    compact_kv.compact_kv_twin(wanted, table, rows, committed, sizes.page)
    if torch.equal(wanted, kv):
        return "nothing moved: the random tree is no test"
    return difference(made, wanted)


def difference(made: Any, wanted: Any, name: str = "result") -> str | None:
    """Where two nested tuples or dataclasses of tensors differ in a byte, None if nowhere."""
    if isinstance(wanted, Tensor):
        if made.shape != wanted.shape or made.dtype != wanted.dtype:
            return f"{name}: {made.dtype} {list(made.shape)}, not {wanted.dtype} {list(wanted.shape)}"
        return None if same_bytes(made, wanted) else f"{name}: {int((made != wanted).sum())} of {wanted.numel()} differ"
    if is_dataclass(wanted):
        parts = [(one.name, getattr(made, one.name), getattr(wanted, one.name)) for one in fields(wanted)]
    else:
        parts = [(str(place), a, b) for place, (a, b) in enumerate(zip(made, wanted, strict=True))]
    found = (difference(a, b, f"{name}.{part}") for part, a, b in parts)
    return next((line for line in found if line is not None), None)


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape and dtype have the same bytes: 0 and -0 differ, a NaN equals itself."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
