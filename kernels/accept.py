"""Accept and commit: walk every slot's tree along the target's own choices and append what was produced.

At every row the target's next token is already chosen (``sample``).  From the root the walk goes to the child that
carries the node's chosen token, and stops where there is none; the choices along the way are the committed tokens, the
last one being the bonus token.  Nothing here depends on how the draft came to its nodes, so nothing but speed does
either (docs/structure.md, promise 1).  End of sequence and the length limit are part of the commit, so that the next
round needs no word from the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.kernels.rows import Rows
from redraft.kernels.trees_cpu import accept_compiled
from redraft.kernels.triton_support import CompileCase, check_tensor, jit, next_power_of_2, tl, use_triton

RUNNING, STOP, LENGTH = 0, 1, 2
"""Values of ``Committed.finish``: goes on, produced an end-of-sequence token, reached its limit."""


@dataclass(frozen=True, slots=True)
class Committed:
    """What one round committed, per slot, all int64; nothing for slots that are inactive or have no rows."""

    tokens: Tensor
    """[S+1, W] committed tokens in order, the end-of-sequence token included; -1 beyond ``count``."""
    count: Tensor
    """[S+1] number of committed tokens."""
    accepted: Tensor
    """[S+1] how many of them were drafted: all but the bonus token, unless the commit was cut before it."""
    drafted: Tensor
    """[S+1] nodes verified, the root not counted."""
    finish: Tensor
    """[S+1] ``RUNNING``, ``STOP`` or ``LENGTH``; ``STOP`` where one token is both."""
    path_row: Tensor
    """[S+1, W] packed row of the accepted node at depth j, the root at 0; -1 beyond ``accepted``."""


def accept(
    rows: Rows, choice: Tensor, tokens: Tensor, length: Tensor, limit: Tensor, active: Tensor, ends: Tensor
) -> Committed:
    """Commit the round and advance the slots' state in place.

    Args:
        rows: the round's R rows.
        choice: [R] int64, the target's next token after every row.
        tokens: [S+1, T] int64, committed tokens of every slot; appended to.  Row S may be scribbled on with zeros.
        length: [S+1] int64, committed tokens; advanced.
        limit: [S+1] int64, the length at which a slot is finished; T where that is less.
        active: [S+1] bool; cleared where a slot finishes.  Inactive slots keep their state.
        ends: [S+1, E] int64, the tokens that finish each slot, -1 where it has fewer; E may be 0.  Rows may lie apart.
    """
    if use_triton(choice, tokens, length, limit, active, ends):
        return accept_kernel(rows, choice, tokens, length, limit, active, ends)
    made = accept_compiled(rows, choice, tokens, length, limit, active, ends)
    return Committed(*made) if made else accept_twin(rows, choice, tokens, length, limit, active, ends)


def accept_twin(
    rows: Rows, choice: Tensor, tokens: Tensor, length: Tensor, limit: Tensor, active: Tensor, ends: Tensor
) -> Committed:
    """``accept`` in plain torch: every row's accepted child first, then the walks of all slots at once."""
    R, W = rows.path.shape
    S, T = tokens.shape[0] - 1, tokens.shape[1]
    device = choice.device

    # a node's accepted child, R for none; the lowest row wins among siblings that carry the same token
    carries = (rows.token == choice.index_select(0, rows.parent)).logical_and_(rows.depth > 0)
    child = torch.full((R + 1,), R, device=device)
    child.scatter_reduce_(0, rows.parent, torch.where(carries, torch.arange(R, device=device), R), "amin")

    live = (rows.row_count > 0).logical_and_(active)
    walk = [torch.where(live, rows.first_row, R)]
    for _ in range(W - 1):
        walk.append(child.index_select(0, walk[-1]))
    row = torch.stack(walk, 1)
    reached = row < R
    produced = choice[row.clamp(max=R - 1)]

    step = torch.arange(W, device=device)
    steps = reached.sum(1)
    room = limit.clamp(max=T).sub_(length)
    before_end = (produced.unsqueeze(2) == ends.unsqueeze(1)).any(2).cumsum(1).eq(0).sum(1)
    count = torch.minimum(torch.minimum(steps, before_end + 1), room).clamp_(min=0)
    kept = step < count.unsqueeze(1)
    accepted = torch.minimum(steps - 1, count).clamp_(min=0)
    full = (count >= room).logical_and_(live)
    finish = torch.where(before_end < count, STOP, full * LENGTH)

    # what is not kept goes to the trash slot, as a token that is safe to look up
    cell = torch.arange(0, (S + 1) * T, T, device=device).add_(length).unsqueeze(1) + step
    tokens.view(-1).scatter_(0, torch.where(kept, cell, S * T).view(-1), (produced * kept).view(-1))
    length.add_(count)
    active.logical_and_(finish == RUNNING)
    return Committed(
        tokens=produced.masked_fill_(~kept, -1),
        count=count,
        accepted=accepted,
        drafted=(rows.row_count - 1) * live,
        finish=finish,
        path_row=row.masked_fill_((step > accepted.unsqueeze(1)).logical_or_(~reached), -1),
    )


@jit
def _accept(  # type: ignore[no-untyped-def]
    p_row_token, p_row_parent, p_first_row, p_row_count, p_choice, p_ends,
    p_tokens, p_length, p_limit, p_active,
    p_out, p_count, p_accepted, p_drafted, p_finish, p_path_row,
    T, E, STRIDE_E, W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per slot: a walk by scalars over the slot's rows, which it holds in registers."""
    slot = tl.program_id(0).to(tl.int64)
    o_node = tl.arange(0, BLOCK)
    first = tl.load(p_first_row + slot)
    rows = tl.load(p_row_count + slot)
    length = tl.load(p_length + slot)
    live = tl.load(p_active + slot).to(tl.int1) & (rows > 0)
    rows = tl.where(live, rows, 0)
    m_row = o_node < rows
    b_token = tl.load(p_row_token + first + o_node, mask=m_row, other=0)
    b_parent = tl.load(p_row_parent + first + o_node, mask=m_row, other=0) - first
    b_choice = tl.load(p_choice + first + o_node, mask=m_row, other=0)

    # b_step holds the node at each depth, b_out the choice there
    b_step = tl.full([BLOCK], -1, tl.int64)
    b_out = tl.full([BLOCK], 0, tl.int64)
    steps = tl.full([], 0, tl.int32)
    node = tl.where(live, 0, BLOCK)
    while node < BLOCK:
        chosen = tl.sum(tl.where(o_node == node, b_choice, 0), 0)
        b_step = tl.where(o_node == steps, node, b_step)
        b_out = tl.where(o_node == steps, chosen, b_out)
        steps += 1
        m_child = m_row & (o_node > 0) & (b_parent == node) & (b_token == chosen)
        node = tl.min(tl.where(m_child, o_node, BLOCK), 0)

    # slots have few end tokens, mostly one
    m_end = o_node < 0
    for end in range(E):
        m_end = m_end | (b_out == tl.load(p_ends + slot * STRIDE_E + end))
    before_end = tl.min(tl.where(m_end, o_node, BLOCK), 0)
    room = tl.maximum(tl.minimum(tl.load(p_limit + slot), T) - length, 0)
    count = tl.minimum(tl.minimum(steps, before_end + 1), room)
    accepted = tl.maximum(tl.minimum(steps - 1, count), 0)
    finish = tl.where(before_end < count, 1, tl.where(live & (count >= room), 2, 0))

    m_kept = o_node < count
    tl.store(p_tokens + slot * T + length + o_node, b_out, mask=m_kept)
    tl.store(p_length + slot, length + count)
    tl.store(p_active + slot, live & (finish == 0), mask=live)
    m_width = o_node < W
    tl.store(p_out + slot * W + o_node, tl.where(m_kept, b_out, -1), mask=m_width)
    b_path_row = tl.where((o_node <= accepted) & (b_step >= 0), first + b_step, -1)
    tl.store(p_path_row + slot * W + o_node, b_path_row, mask=m_width)
    tl.store(p_count + slot, count)
    tl.store(p_accepted + slot, accepted)
    tl.store(p_drafted + slot, tl.where(live, rows - 1, 0))
    tl.store(p_finish + slot, finish.to(tl.int64))


def accept_kernel(
    rows: Rows, choice: Tensor, tokens: Tensor, length: Tensor, limit: Tensor, active: Tensor, ends: Tensor
) -> Committed:
    """``accept`` in Triton, one program per slot.  Raises ``ValueError`` for tensors the kernel cannot take."""
    R, W = rows.path.shape
    slots, T = tokens.shape
    for name, tensor, dtype, shape in (
        ("rows.token", rows.token, torch.int64, (R,)),
        ("rows.parent", rows.parent, torch.int64, (R,)),
        ("rows.first_row", rows.first_row, torch.int64, (slots,)),
        ("rows.row_count", rows.row_count, torch.int64, (slots,)),
        ("choice", choice, torch.int64, (R,)),
        ("tokens", tokens, torch.int64, (slots, T)),
        ("length", length, torch.int64, (slots,)),
        ("limit", limit, torch.int64, (slots,)),
        ("active", active, torch.bool, (slots,)),
    ):
        check_tensor(name, tensor, 2 if name == "tokens" else 1, dtype, like=choice)
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, but {list(shape)} fits the other arguments")
    # of a wider table a round hands over the columns that its requests use
    check_tensor("ends[0]", ends[0], 1, torch.int64, like=choice)
    if ends.shape[0] != slots:
        raise ValueError(f"ends has shape {list(ends.shape)}, but {slots} rows fit the other arguments")
    out, path_row = choice.new_empty(slots, W), choice.new_empty(slots, W)
    count, accepted, drafted, finish = (choice.new_empty(slots) for _ in range(4))
    _accept[(slots,)](
        rows.token, rows.parent, rows.first_row, rows.row_count, choice, ends,
        tokens, length, limit, active,
        out, count, accepted, drafted, finish, path_row,
        T, ends.shape[1], ends.stride(0), W=W, BLOCK=next_power_of_2(W), num_warps=1,
    )  # fmt: skip
    return Committed(out, count, accepted, drafted, finish, path_row)


_INPUTS = ("row_token", "row_parent", "first_row", "row_count", "choice", "ends", "tokens", "length", "limit")
_OUTPUTS = ("out", "count", "accepted", "drafted", "finish", "path_row")
_TYPES = {
    **{f"p_{name}": "*i64" for name in (*_INPUTS, *_OUTPUTS)},
    "p_active": "*i1",
    "T": "i32",
    "E": "i32",
    "STRIDE_E": "i32",
}
COMPILE_CASES = [
    CompileCase(_accept, _TYPES, {"W": 8, "BLOCK": 8}, num_warps=1),
    CompileCase(_accept, _TYPES, {"W": 64, "BLOCK": 64}, num_warps=1),
]
