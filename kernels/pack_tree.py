"""Choose the round's rows: the best-scored nodes of all slots' candidate trees, best first over the whole batch.

The host fixes the number of rows R; which nodes fill them is decided here, on the device, from the drafters' scores.
Every active slot's root gets a row.  The other rows go to the candidates with the highest score, ties to the lower
slot, then to the lower candidate.  A node counts with the lowest score on its way from the root, so a node's parent is
chosen whenever the node is, whatever scores a draft makes up.  Where scores are products of the draft's probabilities,
these are the R nodes with the greatest expected acceptance length (DDTree, arXiv 2604.12989).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from redraft.kernels.rows import Rows
from redraft.kernels.trees_cpu import pack_tree_compiled
from redraft.kernels.triton_support import CompileCase, check_tensor, jit, next_power_of_2, tl, use_triton

MAX_NODES = 64
"""Nodes per slot, the root included: the kernel keeps a slot's [W, W] table in registers."""
BLOCK = 2048
"""Nodes that are ranked at a time; a batch of more goes through the kernel in several."""
_REGISTERS = 128
"""A thread's bound.  One program has a multiprocessor to itself; not told so, ptxas spills to make room for more."""
_INF = float("inf")
_LOWEST = torch.finfo(torch.float32).min


def pack_tree(
    cand_token: Tensor, cand_parent: Tensor, cand_score: Tensor, active: Tensor, length: Tensor, R: int
) -> Rows:
    """Pack the best nodes of all slots into ``R`` rows.

    Args:
        cand_token: [S+1, W] int64.  Candidate 0 is the root, the slot's anchor.
        cand_parent: [S+1, W] int64, the parent's candidate number, lower than the candidate's own, also where a
            candidate is absent; 0 for the root.
        cand_score: [S+1, W] fp32, expected acceptance; -inf or NaN where there is no candidate; the root's is not read.
        active: [S+1] bool; the trash slot is not active.
        length: [S+1] int64, committed tokens; the root's position is length - 1.
        R: rows of the round, at least the number of active slots.
    """
    if use_triton(cand_token, cand_parent, cand_score, active, length):
        return pack_tree_kernel(cand_token, cand_parent, cand_score, active, length, R)
    made = pack_tree_compiled(cand_token, cand_parent, cand_score, active, length, R)
    return made or pack_tree_twin(cand_token, cand_parent, cand_score, active, length, R)


def pack_tree_twin(
    cand_token: Tensor, cand_parent: Tensor, cand_score: Tensor, active: Tensor, length: Tensor, R: int
) -> Rows:
    """``pack_tree`` in plain torch.  A node's number over all slots, slot * W + candidate, is its *key* here."""
    S, W = cand_token.shape[0] - 1, cand_token.shape[1]
    device = cand_token.device

    # lowest cost first: roots of active slots cost -inf, what is absent +inf or NaN, which sort last
    cost = cand_score.neg().clamp_(min=_LOWEST)
    cost.select(1, 0).fill_(_INF).masked_fill_(active, -_INF)
    # a node costs what the costliest on its way from the root does; each step looks twice as far up
    ancestor = cand_parent
    for step in range((W - 1).bit_length()):
        ancestor = ancestor.gather(1, ancestor) if step else ancestor
        cost = torch.maximum(cost, cost.gather(1, ancestor))
    cost, key = cost.view(-1).sort(stable=True)
    # the trash slot's root is the highest key in use, so padding ends up behind all nodes
    key = torch.where(cost[:R] < _INF, key[:R], S * W)
    if key.shape[0] < R:
        key = functional.pad(key, (0, R - key.shape[0]), value=S * W)
    key = key.sort().values

    slot = key // W
    real = slot < S
    ones = real.long()
    row = torch.arange(R, device=device)
    bounds = torch.searchsorted(slot, torch.arange(S + 2, device=device).clamp_(max=S))
    first_row = bounds[:-1]
    root = torch.where(real, first_row.index_select(0, slot), row)
    parent_key = slot * W + cand_parent.view(-1).index_select(0, key)
    parent = torch.where(real, torch.searchsorted(key, parent_key), row)

    upwards = [row]
    for _ in range(W - 1):
        upwards.append(parent.index_select(0, upwards[-1]))
    climb = torch.stack(upwards).sub_(root)
    depth = climb.sign().sum(0)
    # [W, R] how far above the row its ancestor at depth j is
    above = depth - torch.arange(W, device=device).unsqueeze(1)
    path = climb.gather(0, above.clamp(min=0)).masked_fill_(above < 0, -1)
    return Rows(
        token=cand_token.view(-1).index_select(0, key).mul_(ones),
        slot=slot,
        position=(length.index_select(0, slot).sub_(1) + depth).mul_(ones),
        depth=depth,
        parent=parent,
        index=row - root,
        path=path.t().contiguous(),
        first_row=first_row,
        row_count=bounds[1:] - first_row,
    )


@jit(do_not_specialize=["S", "R"])  # type: ignore[untyped-decorator]
def _rank(  # type: ignore[no-untyped-def]
    p_parent, p_score, p_active, p_upto, S, R, W: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One program.  ``p_upto`` [S * W] int32: how many nodes up to and including this key are chosen.

    Keys are gone through by ``BLOCK``, so registers do however many there are.  In between, ``p_upto`` has of each an
    integer that orders as its score does, the lowest of all where there is no node.
    """
    nodes = S * W
    for i_first in range(0, nodes, BLOCK):
        o_key = i_first + tl.arange(0, BLOCK)
        o_root = o_key // W * W
        m_live = o_key < nodes
        m_live = m_live & tl.load(p_active + o_key // W, mask=m_live, other=0).to(tl.int1)

        # the lowest score on the way to the root; like the twin's, +inf from a draft ranks below a root
        b_node = tl.where(m_live, o_key - o_root, 0)
        b_score = tl.full([BLOCK], float("inf"), tl.float32)
        while tl.max(b_node, 0) > 0:
            m_node = b_node > 0
            b_own = tl.load(p_score + o_root + b_node, mask=m_node, other=0.0)
            b_own = tl.where(b_own == b_own, tl.minimum(b_own, 3.4028234663852886e38), float("-inf"))
            b_score = tl.where(m_node, tl.minimum(b_score, b_own), b_score)
            b_node = tl.load(p_parent + o_root + b_node, mask=m_node, other=0).to(tl.int32)
        m_live = m_live & (b_score > float("-inf"))

        # 0 and -0 are equal; no score has the lowest integer
        b_bits = tl.where(b_score == 0.0, 0.0, b_score).to(tl.int32, bitcast=True)
        b_rank = tl.where(m_live, b_bits ^ ((b_bits >> 31) & 0x7FFFFFFF), -2147483648)
        tl.store(p_upto + o_key, b_rank, mask=o_key < nodes)
    tl.debug_barrier()

    # bit by bit the highest rank that at least R nodes reach; the lowest when all nodes fit
    threshold = tl.full([], -2147483648, tl.int64)
    bit = tl.full([], 0x80000000, tl.int64)
    while bit > 0:
        b_reached = tl.zeros([BLOCK], tl.int32)
        for i_first in range(0, nodes, BLOCK):
            o_key = i_first + tl.arange(0, BLOCK)
            b_rank = tl.load(p_upto + o_key, mask=o_key < nodes, other=-2147483648)
            b_reached += (b_rank >= (threshold + bit).to(tl.int32)).to(tl.int32)
        threshold = tl.where(tl.sum(b_reached, 0) >= R, threshold + bit, threshold)
        bit = bit >> 1
    lowest = threshold.to(tl.int32)
    b_above = tl.zeros([BLOCK], tl.int32)
    for i_first in range(0, nodes, BLOCK):
        o_key = i_first + tl.arange(0, BLOCK)
        b_rank = tl.load(p_upto + o_key, mask=o_key < nodes, other=-2147483648)
        b_above += (b_rank > lowest).to(tl.int32)
    room = R - tl.sum(b_above, 0)

    # of those at the threshold the first; absent nodes are at none
    upto = tl.full([], 0, tl.int32)
    tied = tl.full([], 0, tl.int32)
    for i_first in range(0, nodes, BLOCK):
        o_key = i_first + tl.arange(0, BLOCK)
        b_rank = tl.load(p_upto + o_key, mask=o_key < nodes, other=-2147483648)
        m_tied = (b_rank == lowest) & (b_rank > -2147483648)
        b_tied = tied + tl.cumsum(m_tied.to(tl.int32), 0)
        m_chosen = (b_rank > lowest) | (m_tied & (b_tied <= room))
        b_upto = upto + tl.cumsum(m_chosen.to(tl.int32), 0)
        tl.store(p_upto + o_key, b_upto, mask=o_key < nodes)
        tied += tl.sum(m_tied.to(tl.int32), 0)
        upto += tl.sum(m_chosen.to(tl.int32), 0)


@jit(do_not_specialize=["S", "R"])  # type: ignore[untyped-decorator]
def _fill(  # type: ignore[no-untyped-def]
    p_cand_token, p_cand_parent, p_length, p_upto,
    p_token, p_slot, p_position, p_depth, p_parent, p_index, p_path, p_first_row, p_row_count,
    S, R, W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per slot; the trash slot's writes the padding rows."""
    slot = tl.program_id(0)
    o_node = tl.arange(0, BLOCK)
    o_depth = tl.arange(0, BLOCK)[None, :]
    p_upto += slot * W
    first = tl.load(p_upto - 1, mask=slot > 0, other=0)
    tl.store(p_first_row + slot, first.to(tl.int64))

    if slot < S:
        b_upto = tl.load(p_upto + o_node, mask=o_node < W, other=0)
        b_below = tl.load(p_upto + o_node - 1, mask=(o_node < W) & (slot * W + o_node > 0), other=0)
        m_row = b_upto > b_below
        b_row = b_below.to(tl.int64)
        tl.store(p_row_count + slot, tl.sum(m_row.to(tl.int64), 0))

        b_depth = tl.zeros([BLOCK], tl.int32)
        b_node = tl.where(m_row, o_node, 0)
        while tl.max(b_node, 0) > 0:
            b_depth += (b_node > 0).to(tl.int32)
            b_node = tl.load(p_cand_parent + slot * W + b_node).to(tl.int32)
        b_path = tl.where(o_depth == 0, 0, -1) + tl.zeros([BLOCK, BLOCK], tl.int32)
        b_node = tl.where(m_row, o_node, 0)
        b_level = b_depth
        while tl.max(b_node, 0) > 0:
            b_index = tl.load(p_upto + b_node) - 1 - first
            m_level = (o_depth == b_level[:, None]) & (b_node > 0)[:, None]
            b_path = tl.where(m_level, b_index[:, None], b_path)
            b_node = tl.load(p_cand_parent + slot * W + b_node).to(tl.int32)
            b_level -= 1

        b_parent = tl.load(p_cand_parent + slot * W + o_node, mask=m_row, other=0)
        length = tl.load(p_length + slot)
        tl.store(p_token + b_row, tl.load(p_cand_token + slot * W + o_node, mask=m_row, other=0), mask=m_row)
        tl.store(p_slot + b_row, tl.zeros([BLOCK], tl.int64) + slot, mask=m_row)
        tl.store(p_position + b_row, length - 1 + b_depth, mask=m_row)
        tl.store(p_depth + b_row, b_depth.to(tl.int64), mask=m_row)
        tl.store(p_parent + b_row, (tl.load(p_upto + b_parent, mask=m_row, other=1) - 1).to(tl.int64), mask=m_row)
        tl.store(p_index + b_row, b_row - first, mask=m_row)
        m_path = m_row[:, None] & (o_depth < W)
        tl.store(p_path + b_row[:, None] * W + o_depth, b_path.to(tl.int64), mask=m_path)
    else:
        tl.store(p_row_count + slot, tl.full([], 0, tl.int64))
        b_zero = tl.zeros([BLOCK], tl.int64)
        for start in range(first, R, BLOCK):
            b_row = (start + o_node).to(tl.int64)
            m_row = b_row < R
            tl.store(p_token + b_row, b_zero, mask=m_row)
            tl.store(p_slot + b_row, b_zero + S, mask=m_row)
            tl.store(p_position + b_row, b_zero, mask=m_row)
            tl.store(p_depth + b_row, b_zero, mask=m_row)
            tl.store(p_parent + b_row, b_row, mask=m_row)
            tl.store(p_index + b_row, b_zero, mask=m_row)
            b_path = tl.where(o_depth == 0, 0, -1).to(tl.int64) + b_zero[:, None]
            tl.store(p_path + b_row[:, None] * W + o_depth, b_path, mask=m_row[:, None] & (o_depth < W))


def pack_tree_kernel(
    cand_token: Tensor, cand_parent: Tensor, cand_score: Tensor, active: Tensor, length: Tensor, R: int
) -> Rows:
    """``pack_tree`` in Triton: one program ranks all nodes, then one program per slot writes its rows.

    Raises ``ValueError`` for tensors the kernels cannot take and for more than ``MAX_NODES`` nodes per slot.
    """
    S, W = cand_token.shape[0] - 1, cand_token.shape[1]
    if W > MAX_NODES:
        raise ValueError(f"a slot may have {MAX_NODES} nodes, the root included, but cand_token has {W} columns")
    for name, tensor, rank, dtype in (
        ("cand_token", cand_token, 2, torch.int64),
        ("cand_parent", cand_parent, 2, torch.int64),
        ("cand_score", cand_score, 2, torch.float32),
        ("active", active, 1, torch.bool),
        ("length", length, 1, torch.int64),
    ):
        check_tensor(name, tensor, rank, dtype, like=cand_token)
        if tensor.shape != cand_token.shape[:rank]:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, which does not fit {S} slots and {W} nodes")
    upto = cand_token.new_empty(S * W, dtype=torch.int32)
    token, slot, position, depth, parent, index = (cand_token.new_empty(R) for _ in range(6))
    path = cand_token.new_empty(R, W)
    first_row, row_count = cand_token.new_empty(S + 1), cand_token.new_empty(S + 1)
    block = min(next_power_of_2(S * W), BLOCK)
    _rank[(1,)](cand_parent, cand_score, active, upto, S, R, W=W, BLOCK=block, **_options(block))
    _fill[(S + 1,)](
        cand_token, cand_parent, length, upto,
        token, slot, position, depth, parent, index, path, first_row, row_count,
        S, R, W=W, BLOCK=next_power_of_2(W),
    )  # fmt: skip
    return Rows(token, slot, position, depth, parent, index, path, first_row, row_count)


def _options(block: int) -> dict[str, Any]:
    """Of the launch that ranks nodes by ``block``."""
    return {"num_warps": 4 if block <= 1024 else 16, "maxnreg": _REGISTERS}


_RANK_TYPES = {"p_parent": "*i64", "p_score": "*fp32", "p_active": "*i1", "p_upto": "*i32", "S": "i32", "R": "i32"}
_FILL_OUTPUTS = ("token", "slot", "position", "depth", "parent", "index", "path", "first_row", "row_count")
_FILL_TYPES = {
    **{f"p_{name}": "*i64" for name in ("cand_token", "cand_parent", "length", *_FILL_OUTPUTS)},
    "p_upto": "*i32",
    "S": "i32",
    "R": "i32",
}
_BLOCKS = {64: (31,), 1024: (31, 64), BLOCK: (31, 47, 64)}
COMPILE_CASES = [
    *(
        CompileCase(_rank, _RANK_TYPES, {"W": W, "BLOCK": block}, **_options(block))
        for block, widths in _BLOCKS.items()
        for W in widths
    ),
    *(CompileCase(_fill, _FILL_TYPES, {"W": W, "BLOCK": next_power_of_2(W)}) for W in (8, 31, 47, 64)),
]
"""31 nodes are the root and twice 15 drafted, 47 those and 16 that a grammar forces, 64 all that a slot may have.  More
slots make blocks fuller, then more blocks, so these are the cases of any batch."""
