"""Which slots are drafted for: the active ones, with their anchors and where those stand."""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
from torch import Tensor

from redraft.kernels.triton_support import CompileCase, check_tensor, jit, next_power_of_2, tl, use_triton

_Triple = tuple[Tensor, Tensor, Tensor]


def active_slots(tokens: Tensor, length: Tensor, active: Tensor, requests: int) -> _Triple:
    """``requests`` slots that hold all the active ones, in order, their anchors and the anchors' positions.

    Args:
        tokens: [S+1, T] int64, the slots' texts.
        length: [S+1] int64, tokens of them.
        active: [S+1] bool; the last, the trash slot, is not.
        requests: how many slots; no more are active.  All S+1 where there are fewer.

    Returns slot, anchor and root, [N] int64 each.  Where fewer are active, the others are the trash slot, at
    position 0.
    """
    op = active_slots_kernel if use_triton(tokens, length, active) else active_slots_twin
    return op(tokens, length, active, requests)


def active_slots_twin(tokens: Tensor, length: Tensor, active: Tensor, requests: int) -> _Triple:
    """``active_slots`` in plain torch."""
    slot = (~active).to(torch.int8).argsort(stable=True)[:requests]
    slot = torch.where(active[slot], slot, active.shape[0] - 1)
    last = (length[slot] - 1).clamp_min(0)
    return slot, tokens[slot, last], last * active[slot]


@jit(do_not_specialize=["S", "T", "N"])  # type: ignore[untyped-decorator]
def _active_slots(p_tokens, p_length, p_active, p_slot, p_anchor, p_root, S, T, N, BLOCK: tl.constexpr):
    """One program.  A slot's lane writes the slot's row; lanes from the number of active ones on write the trash's."""
    o_slot = tl.arange(0, BLOCK)
    m_active = tl.load(p_active + o_slot, mask=o_slot <= S, other=0).to(tl.int1)
    b_place = tl.cumsum(m_active.to(tl.int32), 0) - 1
    count = tl.sum(m_active.to(tl.int32), 0)
    m_slot = m_active & (b_place < N)
    b_last = tl.maximum(tl.load(p_length + o_slot, mask=m_slot, other=0) - 1, 0)
    tl.store(p_slot + b_place, o_slot.to(tl.int64), mask=m_slot)
    tl.store(p_root + b_place, b_last, mask=m_slot)
    b_anchor = tl.load(p_tokens + o_slot.to(tl.int64) * T + b_last, mask=m_slot, other=0)
    tl.store(p_anchor + b_place, b_anchor, mask=m_slot)
    last = tl.maximum(tl.load(p_length + S) - 1, 0)
    b_zero = tl.zeros([BLOCK], tl.int64)
    m_trash = (o_slot >= count) & (o_slot < N)
    tl.store(p_slot + o_slot, b_zero + S, mask=m_trash)
    tl.store(p_root + o_slot, b_zero, mask=m_trash)
    tl.store(p_anchor + o_slot, b_zero + tl.load(p_tokens + S.to(tl.int64) * T + last), mask=m_trash)


def active_slots_kernel(tokens: Tensor, length: Tensor, active: Tensor, requests: int) -> _Triple:
    """``active_slots`` in one Triton launch.  Raises ``ValueError`` for tensors the kernel cannot take."""
    check_tensor("tokens", tokens, 2, torch.int64)
    check_tensor("length", length, 1, torch.int64, like=tokens)
    check_tensor("active", active, 1, torch.bool, like=tokens)
    slots, T = tokens.shape
    if length.shape[0] != slots or active.shape[0] != slots:
        shapes = f"{list(length.shape)} and {list(active.shape)}"
        raise ValueError(f"length and active of shapes {shapes} do not fit {slots} rows of tokens")
    N = min(requests, slots)
    slot, anchor, root = (tokens.new_empty(N) for _ in range(3))
    block = next_power_of_2(slots)
    _active_slots[(1,)](
        tokens, length, active, slot, anchor, root, slots - 1, T, N, BLOCK=block, num_warps=1 if block <= 256 else 4
    )
    return slot, anchor, root


_TYPES = {
    **{f"p_{name}": "*i64" for name in ("tokens", "length", "slot", "anchor", "root")},
    "p_active": "*i1",
    **dict.fromkeys(("S", "T", "N"), "i32"),
}
COMPILE_CASES = [
    CompileCase(_active_slots, _TYPES, {"BLOCK": block}, num_warps=warps) for block, warps in ((8, 1), (1024, 4))
]
