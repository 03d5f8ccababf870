"""A DFlash draft of a known shape with random weights, and a round's products and attention apart from its rest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from redraft.benchmarks.shape_target import BOUND, ROOM, Case, ShapeTarget
from redraft.drafts.base import Candidates, Drafter
from redraft.drafts.checkpoint import Checkpoint
from redraft.drafts.dflash import DFlashDrafter
from redraft.drafts.dflash_config import DFlashConfig
from redraft.drafts.merged import MergedDrafter
from redraft.drafts.ngram import NgramDrafter
from redraft.drafts.slots import active_slots
from redraft.kernels.attention import block_attention
from redraft.kernels.block_rows import block_rows
from redraft.kernels.layer_ops import run_layer
from redraft.kernels.ngram import MAX_NODES as MAX_LOOKUP
from redraft.kernels.pack_tree import pack_tree
from redraft.kernels.place_rows import place_rows
from redraft.server.engine.config import PAGE
from redraft.server.engine.state import DeviceState

WITH_LOOKUP = MAX_LOOKUP // 2
"""Most nodes of a draft that n-gram lookup may add to: both trees together have to fit."""


class Unnamed(Checkpoint):
    """Of random weights, for which nobody wants a digest."""

    @property
    def version(self) -> str:
        return "random"


def random_draft(shape: ShapeTarget, config: DFlashConfig, case: Case) -> tuple[DFlashDrafter, Drafter]:
    """A draft that proposes one node less than ``case`` has rows, and what serves: with as many of n-gram lookup.

    Where both would be too many nodes for a tree, lookup is left out, as an engine has it.
    """
    generator = torch.Generator(shape.device).manual_seed(1)

    def random(name: str, size: tuple[int, ...]) -> Tensor:
        if name == "d2t":
            return torch.zeros(size, dtype=torch.int64)
        if len(size) == 1:
            return torch.ones(size, device=shape.device, dtype=shape.dtype)
        made = torch.empty(size, device=shape.device, dtype=shape.dtype)
        return made.normal_(std=size[1] ** -0.5, generator=generator)

    nodes = case.rows - 1
    tensors = {name: random(name, size) for name, size in config.shapes.items()}
    embedding, head = shape.weights.embedding, shape.weights.embedding
    if not shape.spec.tied:
        # laid out for products on a CPU, so not the target's own there; what it says is nobody's concern
        head = torch.empty_like(embedding).normal_(std=embedding.shape[1] ** -0.5, generator=generator)
    trained = DFlashDrafter(Unnamed(config, tensors, {}), embedding, head, ROOM, nodes)
    if nodes > WITH_LOOKUP:
        return trained, trained
    lookup = NgramDrafter(case.requests, shape.spec.vocab, shape.device, nodes)
    return trained, MergedDrafter(trained, lookup)


def products_and_attention(
    shape: ShapeTarget, draft: DFlashDrafter, state: DeviceState, tree: Candidates, case: Case
) -> Callable[[], object]:
    """What does a round's products and attention, the target's and the draft's, in their order, and nothing else.

    The products are those of a pass's layers with all that is fused into them, norms of more than 64 rows included,
    the two of the draft's context, and both heads.  Rows, cells, embeddings and attention's lists of work are made here
    and reused.  Nothing depends on what is computed, so the state stays as it is.
    """
    plan, target, weights = case.plan, shape.target, draft.weights
    slot, anchor, root = active_slots(state.draft, case.requests)
    block = block_rows(
        slot, anchor, root, state.page_table, draft.embedding,
        size=draft.config.block_size, mask=draft.config.mask_token_id, causal=draft.config.causal,
    )  # fmt: skip
    attend_block = block_attention(block.rows, state.page_table, BOUND + draft.config.block_size, draft.config.head_dim)
    rows = pack_tree(tree.token, tree.parent, tree.score, state.active, state.length, plan.rows)
    cell, _ = place_rows(rows, state.page_table, PAGE)
    bound = BOUND + tree.token.shape[1]
    attend = shape.make_attention(rows, state.page_table, bound, shape.spec.head_dim)
    embedded = torch.nn.functional.embedding(rows.token, shape.weights.embedding)
    taps = embedded.repeat(1, len(draft.config.taps))

    def run() -> object:
        hidden = block.hidden
        draft.block_ops.turn(block.position, block.cell)
        for number, layer in enumerate(weights.layers):
            hidden = run_layer(draft.block_ops, layer, hidden, state.draft_kv[number], attend_block)
        drafted = draft.block_ops.project(hidden, weights.norm, weights.head)
        hidden = embedded
        target.ops.turn(rows.position, cell)
        for number, of_target in enumerate(shape.weights.layers):
            hidden = run_layer(target.ops, of_target, hidden, state.kv[number], attend)
        context = draft.context_ops.project(weights.fuse(taps), weights.hidden_norm, weights.context_kv)
        return drafted, context, target.logits(hidden)

    return run
