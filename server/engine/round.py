"""The round: draft, verify, accept, commit, as one function over preallocated tensors.

No value on the host depends on a token of the round, so on a GPU it can be captured as a graph; tests run it under
FakeTensorMode, where an op that looks at data fails.  Plain decoding is the same function with empty trees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.drafts.base import Bounds, Drafter
from redraft.kernels.accept import Committed, accept
from redraft.kernels.attention import MakeAttention
from redraft.kernels.compact_kv import compact_kv
from redraft.kernels.pack_tree import pack_tree
from redraft.kernels.rows import Rows, cells
from redraft.kernels.sample import sample
from redraft.server.engine.config import PAGE
from redraft.server.engine.state import DeviceState
from redraft.server.engine.target.decoder import Target


@dataclass(frozen=True, slots=True)
class Plan:
    """What the host decides of a round, from what it knew before it."""

    rows: int
    """Rows to verify, roots included; the drafts' best nodes fill what the roots leave."""
    context_bound: int
    """No request is longer than this before the round."""
    requests: int
    """How many decode, at most."""
    sampled: bool
    """Some request has a temperature above 0."""
    filtered: bool
    """Some request uses top_k, top_p or min_p."""


def run_round(
    state: DeviceState, target: Target, drafter: Drafter, plan: Plan, make_attention: MakeAttention
) -> Committed:
    """Run one round for all active slots; ``state`` is advanced in place."""
    tree = drafter.propose(state.draft, Bounds(plan.context_bound, plan.requests, plan.sampled))
    rows = pack_tree(tree.token, tree.parent, tree.score, state.active, state.length, plan.rows)
    root = state.length - 1
    hidden = forward_rows(state, target, drafter, rows, plan.context_bound + tree.token.shape[1], make_attention)
    choice = sample(
        target.logits(hidden), rows.slot, rows.position, state.sampling, sampled=plan.sampled, filtered=plan.filtered
    )
    committed = accept(rows, choice, state.tokens, state.length, state.limit, state.active, state.eos)
    for kv in (state.kv, state.draft_kv):
        if kv.shape[0]:
            compact_kv(kv, state.page_table, root, rows, committed, PAGE)
    return committed


def forward_rows(
    state: DeviceState,
    target: Target,
    drafter: Drafter,
    rows: Rows,
    position_bound: int,
    make_attention: MakeAttention,
) -> Tensor:
    """Run the target over ``rows``, writing their KV, and the draft's, behind the committed cells; returns [R, H]."""
    cell = cells(state.page_table, rows.slot, rows.position - rows.depth + rows.index, PAGE)
    attend = make_attention(rows, state.page_table, position_bound, target.spec.head_dim)
    layers = drafter.context.taps
    if not layers:
        return target.forward(rows.token, rows.position, cell, state.kv, attend)
    taps = torch.empty(cell.shape[0], len(layers), target.spec.hidden, dtype=target.dtype, device=target.device)
    hidden = target.forward(rows.token, rows.position, cell, state.kv, attend, taps, layers)
    drafter.absorb(taps, rows.position, cell, state.draft_kv)
    return hidden


def prefill_rows(state: DeviceState, slot: int, start: int, count: int, padded: int) -> Rows:
    """A chain of ``count`` prompt tokens of ``slot`` from position ``start``, padded to ``padded`` rows.

    All arguments but the tokens are known on the host.
    """
    number = torch.arange(padded, device=state.device)
    real = number < count
    token = torch.where(real, state.tokens[slot, start : start + padded], 0)
    depth = torch.where(real, number, 0)
    span = torch.arange(state.slots + 1, device=state.device) == slot
    return Rows(
        token=token,
        slot=torch.where(real, slot, state.slots),
        position=torch.where(real, start + number, 0),
        depth=depth,
        parent=torch.where(real, (number - 1).clamp_min(0), number),
        index=depth,
        path=torch.where(number <= depth.unsqueeze(1), number, -1),
        first_row=torch.zeros_like(span, dtype=torch.int64),
        row_count=span * count,
    )
