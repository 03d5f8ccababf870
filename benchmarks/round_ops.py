"""The ops of a round that are neither products nor attention, on inputs as a round has them; op_speed.py times them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from redraft.benchmarks.shape_target import ANCHOR, BOUND, LENGTH, Case, make_state
from redraft.benchmarks.standin import MadeTrees
from redraft.drafts.dflash_config import DFlashConfig
from redraft.drafts.marginals import BRANCH, Noise, marginals
from redraft.drafts.slots import active_slots
from redraft.kernels.accept import accept
from redraft.kernels.adjust import Penalties, adjust
from redraft.kernels.attention_items import TILE, attention_items, attention_items_twin, lanes_of
from redraft.kernels.block_rows import block_rows
from redraft.kernels.block_tree import block_tree
from redraft.kernels.compact_kv import compact_kv
from redraft.kernels.layer_ops import layer_ops
from redraft.kernels.logprobs import logprobs
from redraft.kernels.merge_trees import merge_trees
from redraft.kernels.ngram import ngram
from redraft.kernels.pack_tree import pack_tree
from redraft.kernels.place_rows import place_rows
from redraft.kernels.rms_norm import rms_norm
from redraft.kernels.rope import rope_table
from redraft.kernels.sample import sample
from redraft.kernels.spread_trees import spread_trees
from redraft.kernels.triton_support import use_triton
from redraft.server.engine.config import PAGE
from redraft.server.engine.target.spec import TargetSpec

Op = tuple[Callable[[], object], int]
"""What runs it, and the bytes that it has to read and write."""
TOP = 20
ACCEPTED = 5


class RoundOps:
    """Inputs of one round: ``case`` of a target's shape, with a draft that has a tree of its own beside lookup's."""

    def __init__(
        self, spec: TargetSpec, draft: DFlashConfig, case: Case, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.spec, self.config, self.case, self.device, self.dtype = spec, draft, case, device, dtype
        self.nodes = case.rows - 1
        kv_dtype = torch.float32 if device.type == "cpu" else dtype
        self.state = state = make_state(spec, device, kv_dtype, case, 2 * self.nodes)
        made = MadeTrees(case.requests, 2 * self.nodes, self.nodes, ANCHOR, device)
        right = torch.full((case.requests,), ACCEPTED, device=device)
        made.write(torch.zeros(case.requests, made.spine, dtype=torch.int64, device=device), right, spec.vocab)
        self.tree = made.tree.token, made.tree.parent, made.tree.score
        self.rows = pack_tree(*self.tree, state.active, state.length, case.plan.rows)
        self.cell, _ = place_rows(self.rows, state.page_table, PAGE)
        count = self.rows.token.shape[0]
        self.logits = self._normal(count, spec.vocab) * 4
        # what made the tree's true nodes true
        self.choice = torch.zeros(count, dtype=torch.int64, device=device)
        self.hidden = self._normal(count, spec.hidden)
        state.sampling.temperature.fill_(0.8)
        state.sampling.top_p.fill_(0.9)
        state.sampling.top_k.fill_(50)
        self.slot, self.anchor, self.root = active_slots(state.draft, case.requests)

    def ops(self) -> dict[str, Callable[[], Op]]:
        """By name; each makes what it needs when it is called."""
        return {
            "sample greedy": partial(self._sample, sampled=False, filtered=False),
            "sample": partial(self._sample, sampled=True, filtered=False),
            "sample, top_k 50 and top_p 0.9": partial(self._sample, sampled=True, filtered=True),
            "penalties": self._penalties,
            "marginals greedy": partial(self._marginals, sampled=False),
            "marginals sampled": partial(self._marginals, sampled=True),
            "block_tree": self._block_tree,
            "ngram": self._ngram,
            "merge_trees": self._merge_trees,
            "spread_trees": self._spread_trees,
            "pack_tree": self._pack_tree,
            "place_rows": self._place_rows,
            "attention_items": self._attention_items,
            "accept": self._accept,
            "compact_kv": self._compact_kv,
            "active_slots": self._active_slots,
            "block_rows": self._block_rows,
            "rms_norm": self._rms_norm,
            "rope and cache of the draft's context": self._rope_cache,
            "embedding": self._embedding,
            "taps": self._taps,
            # the one that is made of torch's ops, sorts among them
            "log-probabilities, top 20": self._logprobs,
        }

    def _normal(self, *shape: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(0)
        return torch.randn(*shape, device=self.device, generator=generator).to(self.dtype)

    def _sample(self, *, sampled: bool, filtered: bool) -> Op:
        arguments = self.logits, self.rows.slot, self.rows.position, self.state.sampling
        return partial(sample, *arguments, sampled=sampled, filtered=filtered), size(self.logits, self.choice)

    def _penalties(self) -> Op:
        slots = self.state.length.shape[0]
        ones = torch.ones(slots, device=self.device)
        count = torch.zeros(slots, self.spec.vocab, dtype=torch.int32, device=self.device)
        count[:, ::7] = 2
        penalties = Penalties(ones * 0.1, ones * 0.1, ones * 1.1, count)
        moved = size(self.logits, self.logits.float(), count)
        return partial(adjust, self.logits, self.rows, penalties=penalties), moved

    def _logprobs(self) -> Op:
        return partial(logprobs, self.logits, self.choice, TOP), size(self.logits)

    def _marginals(self, *, sampled: bool) -> Op:
        config, table = self.config, self.state.sampling
        logits = self._normal(self.case.requests, config.drafted, config.tokens)
        scale = torch.ones(config.drafted, device=self.device)
        ids = torch.arange(config.tokens, device=self.device) if config.draft_vocab else None
        noise = Noise(table.seed, self.root + 1, table.temperature, self.slot) if sampled else None
        return partial(marginals, logits, scale, BRANCH, ids, noise), size(logits)

    def _candidates(self) -> tuple[Tensor, Tensor]:
        shape = self.case.requests, self.config.drafted, BRANCH
        token = torch.arange(BRANCH, device=self.device).expand(shape).contiguous()
        return token, self._normal(*shape).float().log_softmax(-1).sort(descending=True).values

    def _block_tree(self) -> Op:
        inputs = self.anchor, *self._candidates()
        return sized(partial(block_tree, *inputs, self.nodes), *inputs)

    def _ngram(self) -> Op:
        state = self.state
        # a passage over and over again, so that there is something to find
        passage = torch.arange(31, device=self.device).repeat(1 + state.tokens.shape[1] // 31)
        tokens = (passage[: state.tokens.shape[1]] % self.spec.vocab).expand_as(state.tokens).contiguous()
        newest = torch.zeros(tokens.shape[0], self.spec.vocab, dtype=torch.int32, device=self.device)
        run = partial(ngram, tokens, state.length, state.active, newest, max_nodes=self.nodes, context_bound=BOUND)
        # of every token of the text its id, and where it was last
        return run, self.case.requests * LENGTH * (8 + 2 * 4) + size(run())

    def _halves(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        width = self.nodes + 1
        first = tuple(part[:, :width].contiguous() for part in self.tree)
        return first, tuple(part.clone() for part in first)

    def _merge_trees(self) -> Op:
        first, second = self._halves()
        return sized(partial(merge_trees, first, second), first, second)  # type: ignore[arg-type]

    def _spread_trees(self) -> Op:
        state, trees = self.state, [part[: self.case.requests].contiguous() for part in self._halves()[0]]
        return sized(partial(spread_trees, state.tokens, state.length, state.active, self.slot, *trees), *trees)

    def _pack_tree(self) -> Op:
        state = self.state
        return sized(partial(pack_tree, *self.tree, state.active, state.length, self.case.plan.rows), self.tree)

    def _place_rows(self) -> Op:
        rows = self.rows
        read = rows.slot, rows.position, rows.depth, rows.index, rows.parent
        return sized(partial(place_rows, rows, self.state.page_table, PAGE), read)

    def _attention_items(self) -> Op:
        rows, table = self.rows, self.state.page_table
        op = attention_items if use_triton(rows.slot, table) else attention_items_twin
        lanes = lanes_of(self.state.kv.dtype, self.spec.head_dim)
        slab = -(-rows.token.shape[0] // TILE) * TILE
        run = partial(op, rows, table, -(-BOUND // lanes), lanes=lanes, run=TILE, slab=slab)
        return sized(run, rows.slot, rows.position, rows.depth, rows.path)

    def _accept(self) -> Op:
        state = self.state
        # a text of its own, which grows from call to call
        tokens, length, active = (part.clone() for part in (state.tokens, state.length, state.active))
        length[:-1] = 1
        ends = state.adjusting.ends[:, :1]
        run = partial(accept, self.rows, self.choice, tokens, length, state.limit, active, ends)
        return sized(run, self.rows, self.choice)

    def _compact_kv(self) -> Op:
        state = self.state
        tokens, length, limit, active = (
            part.clone() for part in (state.tokens, state.length, state.limit, state.active)
        )
        committed = accept(self.rows, self.choice, tokens, length, limit, active, state.adjusting.ends[:, :1])
        moved = self.case.requests * ACCEPTED * self.spec.kv_bytes(state.kv.element_size())
        return partial(compact_kv, state.kv, state.page_table, self.rows, committed, PAGE), 2 * moved

    def _active_slots(self) -> Op:
        return sized(partial(active_slots, self.state.draft, self.case.requests), self.state.active, self.state.length)

    def _block_rows(self) -> Op:
        config, embedding = self.config, self._embeddings()
        inputs = self.slot, self.anchor, self.root, self.state.page_table, embedding
        run = partial(block_rows, *inputs, size=config.block_size, mask=config.mask_token_id, causal=config.causal)
        made = run()
        # every row's embedding is read and written
        return run, size(made) + size(made.hidden)

    def _rms_norm(self) -> Op:
        weight = torch.ones(self.spec.hidden, device=self.device)
        return sized(partial(rms_norm, self.hidden, weight, 1e-6), self.hidden)

    def _rope_cache(self) -> Op:
        config, cells = self.config, self.state.kv.shape[2]
        half = torch.ones(config.head_dim // 2, device=self.device)
        cos, sin = rope_table(half, 2 * BOUND)
        ops = layer_ops(
            cos, sin, heads=0, kv_heads=config.kv_heads, eps=1e-6, dtype=self.dtype, width=2 * config.kv_width
        )
        made = self._normal(self.rows.token.shape[0], config.layers, 2 * config.kv_width)
        norm = torch.ones(config.layers, config.kv_heads, config.head_dim, device=self.device)
        shape = config.layers, 2, cells, config.kv_heads, config.head_dim
        kv = torch.zeros(shape, dtype=self.state.kv.dtype, device=self.device)
        ops.turn(self.rows.position, self.cell)
        return partial(ops.cache_layers, made, norm, kv), 2 * size(made)

    def _embeddings(self) -> Tensor:
        return torch.zeros(self.spec.vocab, self.spec.hidden, dtype=self.dtype, device=self.device)

    def _embedding(self) -> Op:
        return partial(functional.embedding, self.rows.token, self._embeddings()), 2 * size(self.hidden)

    def _taps(self) -> Op:
        taps = [self.hidden.clone() for _ in self.config.taps]
        return sized(partial(torch.stack, taps, 1), taps)


def sized(run: Callable[[], object], *read: Any) -> Op:
    """An op that reads ``read`` and writes what it returns."""
    return run, size(read) + size(run())


def size(*things: Any) -> int:
    """Bytes of all tensors in nested tuples, lists and dataclasses."""
    total = 0
    for thing in things:
        if isinstance(thing, Tensor):
            total += thing.numel() * thing.element_size()
        elif is_dataclass(thing):
            total += size(*(getattr(thing, one.name) for one in fields(thing)))
        elif isinstance(thing, list | tuple):
            total += size(*thing)
    return total
