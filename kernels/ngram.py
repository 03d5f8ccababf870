"""Draft by looking the end of the text up in the text: every place that reads like it votes for what came next.

A place where the last r tokens agree (r up to ``RUN``) gives its next token the weight of r; the newest ``RECENT``
tokens also get one small vote each, for ends that never occurred.  A token's probability is its votes over all votes
plus ``ESCAPE``, the mass of what has not been seen.  The best token extends the *spine* and counts as text for the next
look-up; the next best ``BRANCH - 1`` become its siblings, without children.  Of all these the nodes with the greatest
product of probabilities along the path are kept.

Votes are integers, so their order of summation does not matter, and kernel and twin agree bit for bit.  The weights
are fitted so that scores are acceptance rates (docs/log.md).  The idea is prompt lookup's (Saxena 2023), with a vote of
all matches, longer ones weighing more, in place of the longest match.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from redraft.kernels.trees_cpu import NgramRule, ngram_compiled
from redraft.kernels.triton_support import CompileCase, check_tensor, jit, next_power_of_2, tl, use_triton

RUN = 6
"""Longest match that is told from shorter ones."""
WEIGHTS = (614, 3072, 8192, 14336, 20480, 28672)
"""Vote of a place whose last 1, 2 … ``RUN`` tokens agree, in units in which ``ESCAPE`` is 1024."""
RECENT = 128
RECENT_WEIGHT = 11
ESCAPE = 1024
BRANCH = 8
"""Different tokens looked at after each spine node."""
MAX_DEPTH = 8
MAX_NODES = 63
"""Drafted nodes per slot: with the root 64, all that ``pack_tree`` takes."""
WINDOW = 2048
"""Newest tokens that are searched."""
_SHIFT = 20
"""A key is votes << _SHIFT | column: unique, and ties go to the newest occurrence."""
_COLUMN = (1 << _SHIFT) - 1
_WEIGHTS = (ctypes.c_int64 * RUN)(*WEIGHTS)
"""For C."""
_Triple = tuple[Tensor, Tensor, Tensor]


def ngram(
    tokens: Tensor, length: Tensor, active: Tensor, newest: Tensor, *, max_nodes: int, context_bound: int
) -> _Triple:
    """Draft a tree for every active slot.

    Args:
        tokens: [S+1, T] int64, each slot's text; ids are in [0, V) up to the slot's length.
        length: [S+1] int64, committed tokens, at most T and ``context_bound``, at least 1 in active slots.
        active: [S+1] bool.
        newest: [S+1, V] int32, scratch: may hold anything, is overwritten.
        max_nodes: drafted nodes per slot, 1 to ``MAX_NODES``.
        context_bound: no active slot is longer; the result does not depend on it.

    Returns:
        token, parent [S+1, W] int64 and score [S+1, W] fp32 with W = ``max_nodes`` + 1: node 0 is the anchor, then
        comes the spine from the top, then its siblings.  A score estimates the probability that the node is accepted;
        -inf where there is no node and in inactive slots.
    """
    if use_triton(tokens, length, active, newest):
        return ngram_kernel(tokens, length, active, newest, max_nodes=max_nodes, context_bound=context_bound)
    D, C = _sizes(max_nodes, context_bound)
    rule = NgramRule(_WEIGHTS, RECENT, RECENT_WEIGHT, ESCAPE, C, D, max_nodes)
    made = ngram_compiled(tokens, length, active, newest, rule)
    return made or ngram_twin(tokens, length, active, newest, max_nodes=max_nodes, context_bound=context_bound)


def _sizes(max_nodes: int, context_bound: int) -> tuple[int, int]:
    """Depth of the spine and columns to search; raises ``ValueError`` for a tree that cannot be made."""
    if not 1 <= max_nodes <= MAX_NODES:
        raise ValueError(f"max_nodes must be 1 to {MAX_NODES}, not {max_nodes}")
    return min(max_nodes, MAX_DEPTH), max(min(WINDOW, context_bound), BRANCH + 1)


def ngram_twin(
    tokens: Tensor, length: Tensor, active: Tensor, newest: Tensor, *, max_nodes: int, context_bound: int
) -> _Triple:
    """``ngram`` in plain torch.  Column C - 1 of the C searched ones is the anchor; column 0 is never a next token."""
    D, C = _sizes(max_nodes, context_bound)
    S = tokens.shape[0]
    left = RUN + D - 2  # so that each of the loop's comparisons may drop its first column
    column = torch.arange(-left, C, device=tokens.device)
    position = column + (length - C).unsqueeze(1)
    text = tokens.gather(1, position.clamp_(min=0, max=tokens.shape[1] - 1))
    text = text.masked_fill_(column < (C - length).clamp_(min=0).unsqueeze(1), -1)
    window = text[:, left:]
    known = window.clamp(min=0)

    # votes for a token meet in the column of its newest occurrence; what lies before the text votes in column 0
    column = column[left:].expand(S, C)
    newest.scatter_reduce_(1, known, column.int(), "amax", include_self=False)
    place = newest.gather(1, known[:, 1:]).mul_(window[:, :-1] >= 0).long()
    recent = place[:, -RECENT:]
    base = column.scatter_add(1, recent, torch.full_like(recent, RECENT_WEIGHT << _SHIFT))

    weights = (0, *WEIGHTS, *WEIGHTS[-1:] * (D - 1))
    weight = torch.tensor([w << _SHIFT for w in weights], device=tokens.device)
    run = text.new_zeros(text.shape)
    ends = window[:, C - RUN :].tensor_split(RUN, 1)
    keys: list[Tensor] = []
    totals: list[Tensor] = []
    for step in range(RUN + D - 1):
        end = ends[step] if step < RUN else known.gather(1, keys[-1][:, :1] & _COLUMN)
        run = (run[:, :-1] + 1).masked_fill_(text[:, step:-1] != end, 0)
        if step >= RUN - 1:
            votes = base.scatter_add(1, place, weight.take(run[:, 1 - C :]))[:, 1:]
            keys.append(votes.topk(BRANCH).values)
            totals.append(votes.sum(1))

    key = torch.stack(keys, 1)
    total = (torch.stack(totals, 1) - C * (C - 1) // 2) >> _SHIFT
    probability = (key >> _SHIFT).double() / (total + ESCAPE).unsqueeze(2)
    reach = torch.cat([active.double().unsqueeze(1), probability[:, :-1, 0]], 1).cumprod(1)
    score = (probability * reach.unsqueeze(2)).float()
    key = torch.cat([key[:, :, 0], key[:, :, 1:].flatten(1)], 1)
    score = torch.cat([score[:, :, 0], score[:, :, 1:].flatten(1)], 1)
    # back in order of number, the spine comes first and parents come before their children
    best = score.argsort(dim=1, descending=True, stable=True)[:, :max_nodes].sort(1).values
    parent = torch.where(best < D, best, (best - D) // (BRANCH - 1))
    token = torch.cat([known[:, -1:], known.gather(1, key.gather(1, best) & _COLUMN)], 1)
    score = torch.cat([active.float().unsqueeze(1), score.gather(1, best)], 1)
    return token, functional.pad(parent, (1, 0)), score.masked_fill_(score == 0, float("-inf"))


@jit
def _ngram(  # type: ignore[no-untyped-def]
    p_tokens, p_length, p_active, p_newest, p_votes, p_run, p_token, p_parent, p_score,
    T, V, C, NODES,
    D: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, BLOCK_TREE: tl.constexpr,
    RUN: tl.constexpr, WEIGHTS: tl.constexpr, RECENT: tl.constexpr, RECENT_WEIGHT: tl.constexpr,
    ESCAPE: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """One program per slot.  Scratch: ``p_newest`` [S+1, V] int32, ``p_votes`` int64, ``p_run`` int32 [S+1, BLOCK]."""
    slot = tl.program_id(0).to(tl.int64)
    p_tokens += slot * T
    p_newest += slot * V
    p_votes += slot * BLOCK
    p_run += slot * BLOCK
    length = tl.load(p_length + slot)
    active = tl.load(p_active + slot).to(tl.int1)
    o_column = tl.arange(0, BLOCK)
    o_position = length - C + o_column
    m_text = (o_column < C) & (o_position >= 0)
    m_next = (o_column > 0) & (o_column < C) & (o_position > 0)
    m_key = (o_column > 0) & (o_column < C)
    b_before = tl.load(p_tokens + o_position - 1, mask=m_next, other=-1)
    b_token = tl.load(p_tokens + o_position, mask=m_text, other=0)

    # volatile loads after barriers: atomics change memory behind the first-level cache
    tl.store(p_newest + b_token, 0, mask=m_text)
    tl.debug_barrier()
    tl.atomic_max(p_newest + b_token, o_column, mask=m_text, sem="relaxed")
    tl.store(p_votes + o_column, o_column.to(tl.int64))
    tl.debug_barrier()
    b_place = tl.load(p_newest + b_token, mask=m_next, other=0, volatile=True)
    b_recent = tl.full([BLOCK], RECENT_WEIGHT << SHIFT, tl.int64)
    tl.atomic_add(p_votes + b_place, b_recent, mask=m_next & (o_column >= C - RECENT), sem="relaxed")
    tl.debug_barrier()
    b_base = tl.load(p_votes + o_column, volatile=True)

    b_run = tl.zeros([BLOCK], tl.int32)
    m_equal = m_next
    for j in range(RUN):
        end = tl.load(p_tokens + length - 1 - j, mask=j < length, other=-1)
        b_text = tl.load(p_tokens + o_position - 1 - j, mask=m_next & (o_column > j) & (o_position > j), other=-2)
        m_equal = m_equal & (b_text == end)
        b_run += m_equal.to(tl.int32)

    o_node = tl.arange(0, BLOCK_TREE)
    b_score = tl.full([BLOCK_TREE], -1.0, tl.float32)
    b_column = tl.zeros([BLOCK_TREE], tl.int32)
    reach = active.to(tl.float64)
    for d in range(D):
        b_weight = tl.zeros([BLOCK], tl.int64)
        for r in tl.static_range(RUN):
            b_weight = tl.where(b_run > r, WEIGHTS[r], b_weight)
        tl.debug_barrier()
        tl.store(p_votes + o_column, b_base)
        tl.store(p_run + o_column, b_run)
        tl.debug_barrier()
        tl.atomic_add(p_votes + b_place, b_weight << SHIFT, mask=m_next & (b_run > 0), sem="relaxed")
        tl.debug_barrier()
        b_votes = tl.where(m_key, tl.load(p_votes + o_column, volatile=True), -1)
        total = (tl.sum(tl.where(m_key, b_votes >> SHIFT, 0), 0) + ESCAPE).to(tl.float64)

        below = reach
        spine = tl.full([], 0, tl.int64)
        for k in range(K):
            key = tl.max(b_votes, 0)
            b_votes = tl.where(b_votes == key, -1, b_votes)
            column = key & ((1 << SHIFT) - 1)
            probability = (key >> SHIFT).to(tl.float64) / total
            m_node = o_node == tl.where(k == 0, d, D + d * (K - 1) + k - 1)
            b_score = tl.where(m_node, (probability * reach).to(tl.float32), b_score)
            b_column = tl.where(m_node, column.to(tl.int32), b_column)
            spine = tl.where(k == 0, column, spine)
            below = tl.where(k == 0, probability * reach, below)
        reach = below
        end = tl.load(p_tokens + length - C + spine, mask=length - C + spine >= 0, other=0)
        b_run_before = tl.load(p_run + o_column - 1, mask=m_next, other=0, volatile=True)
        b_run = tl.where(m_next & (b_before == end), b_run_before + 1, 0)

    m_ahead = (b_score[None, :] > b_score[:, None]) | (
        (b_score[None, :] == b_score[:, None]) & (o_node[None, :] < o_node[:, None])
    )
    b_chosen = (tl.sum(m_ahead.to(tl.int32), 1) < NODES).to(tl.int32)
    o_out = slot * (NODES + 1) + tl.cumsum(b_chosen, 0)
    m_chosen = b_chosen > 0
    b_node_position = length - C + b_column
    b_drafted = tl.load(p_tokens + b_node_position, mask=m_chosen & (b_node_position >= 0), other=0)
    b_parent = tl.where(o_node < D, o_node, (o_node - D) // (K - 1))
    tl.store(p_token + o_out, b_drafted, mask=m_chosen)
    tl.store(p_parent + o_out, b_parent.to(tl.int64), mask=m_chosen)
    tl.store(p_score + o_out, tl.where(b_score > 0.0, b_score, float("-inf")), mask=m_chosen)
    o_root = slot * (NODES + 1)
    tl.store(p_token + o_root, tl.load(p_tokens + length - 1, mask=length > 0, other=0))
    tl.store(p_parent + o_root, tl.full([], 0, tl.int64))
    tl.store(p_score + o_root, tl.where(active, 1.0, float("-inf")))


def ngram_kernel(
    tokens: Tensor, length: Tensor, active: Tensor, newest: Tensor, *, max_nodes: int, context_bound: int
) -> _Triple:
    """``ngram`` in Triton.  Raises ``ValueError`` for tensors or sizes the kernel cannot take."""
    D, C = _sizes(max_nodes, context_bound)
    check_tensor("tokens", tokens, 2, torch.int64)
    check_tensor("length", length, 1, torch.int64, like=tokens)
    check_tensor("active", active, 1, torch.bool, like=tokens)
    check_tensor("newest", newest, 2, torch.int32, like=tokens)
    S, T = tokens.shape
    if newest.shape[0] != S or length.shape[0] != S or active.shape[0] != S:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (length, active, newest))
        raise ValueError(f"length, active and newest of shapes {shapes} do not fit {S} rows of tokens")
    block = next_power_of_2(C)
    votes, run = tokens.new_empty(S, block), tokens.new_empty(S, block, dtype=torch.int32)
    token, parent = (tokens.new_empty(S, max_nodes + 1) for _ in range(2))
    score = tokens.new_empty(S, max_nodes + 1, dtype=torch.float32)
    _ngram[(S,)](
        tokens, length, active, newest, votes, run, token, parent, score,
        T, newest.shape[1], C, max_nodes, D=D, BLOCK=block, BLOCK_TREE=next_power_of_2(D * BRANCH),
        num_warps=_warps(block), **_CONSTANTS,
    )  # fmt: skip
    return token, parent, score


def _warps(block: int) -> int:
    return 4 if block <= 512 else 8


_CONSTANTS: dict[str, Any] = {
    "K": BRANCH, "RUN": RUN, "WEIGHTS": WEIGHTS, "RECENT": RECENT, "RECENT_WEIGHT": RECENT_WEIGHT, "ESCAPE": ESCAPE,
    "SHIFT": _SHIFT,
}  # fmt: skip
_TYPES = {
    **{f"p_{name}": "*i64" for name in ("tokens", "length", "votes", "token", "parent")},
    **{"p_active": "*i1", "p_newest": "*i32", "p_run": "*i32", "p_score": "*fp32"},
    **dict.fromkeys(("T", "V", "C", "NODES"), "i32"),
}
COMPILE_CASES = [
    CompileCase(_ngram, _TYPES, {"D": D, "BLOCK": B, "BLOCK_TREE": D_tree, **_CONSTANTS}, num_warps=_warps(B))
    for D, B, D_tree in ((1, 16, 8), (5, 512, 64), (MAX_DEPTH, WINDOW, 64))
]
