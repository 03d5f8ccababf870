"""Give the trees that a drafter made for some slots to their slots, and the others none.

A drafter that works for active slots only makes N trees; the engine asks for one in every slot (``drafts.base``).
"""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
from torch import Tensor

from redraft.kernels.triton_support import CompileCase, check_tensor, jit, next_power_of_2, tl, use_triton

_Tree = tuple[Tensor, Tensor, Tensor]


def spread_trees(
    tokens: Tensor, length: Tensor, active: Tensor, slot: Tensor, token: Tensor, parent: Tensor, score: Tensor
) -> _Tree:
    """Trees of width W for all slots.

    Args:
        tokens: [S+1, T] int64, the text of every slot; the trash slot is the last.
        length: [S+1] int64, committed tokens.
        active: [S+1] bool; the trash slot is not active.
        slot: [N] int64, the slot of every tree; only slots that are not active may have several.
        token: [N, W] int64.
        parent: [N, W] int64, lower than the node's own number.
        score: [N, W] fp32.

    Returns:
        token, parent [S+1, W] int64 and score [S+1, W] fp32.  In slots that are not active all scores are -inf.  An
        active slot without a tree has the root alone: its newest token in every node, parents 0, and scores of 1 and
        -inf.  Where several trees are a slot's it has the tokens and parents of one of them.
    """
    inputs = (tokens, length, active, slot, token, parent, score)
    if use_triton(*inputs):
        return spread_trees_kernel(*inputs[:-3], token.contiguous(), parent.contiguous(), score.contiguous())
    return spread_trees_twin(*inputs)


def spread_trees_twin(
    tokens: Tensor, length: Tensor, active: Tensor, slot: Tensor, token: Tensor, parent: Tensor, score: Tensor
) -> _Tree:
    """``spread_trees`` in plain torch."""
    slots, width = tokens.shape[0], token.shape[1]
    anchor = tokens.gather(1, (length - 1).clamp_(min=0).unsqueeze(1))
    root = torch.where(torch.arange(width, device=tokens.device) == 0, 1.0, -torch.inf)
    scores = root.expand(slots, width).index_copy(0, slot, score)
    return (
        anchor.expand(slots, width).index_copy(0, slot, token),
        parent.new_zeros(slots, width).index_copy(0, slot, parent),
        scores.masked_fill(~active.unsqueeze(1), -torch.inf),
    )


@jit(do_not_specialize=["N"])
def _spread_trees(
    p_tokens, p_length, p_active, p_slot, p_from_token, p_from_parent, p_from_score, p_token, p_parent, p_score,
    T, N, W, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program per slot: it looks for its tree among the N."""
    slot = tl.program_id(0).to(tl.int64)
    o_node = tl.arange(0, BLOCK)
    o_tree = tl.arange(0, BLOCK_N)
    m_mine = tl.load(p_slot + o_tree, mask=o_tree < N, other=-1) == slot
    tree = tl.max(tl.where(m_mine, o_tree, -1), 0).to(tl.int64)
    active = tl.load(p_active + slot).to(tl.int1)
    length = tl.load(p_length + slot)
    anchor = tl.load(p_tokens + slot * T + tl.maximum(length - 1, 0))

    m_node = o_node < W
    m_from = m_node & (tree >= 0)
    o_from = tree * W + o_node
    b_token = tl.where(tree >= 0, tl.load(p_from_token + o_from, mask=m_from, other=0), anchor)
    b_parent = tl.load(p_from_parent + o_from, mask=m_from, other=0)
    b_root = tl.where(o_node == 0, 1.0, float("-inf"))
    b_score = tl.where(tree >= 0, tl.load(p_from_score + o_from, mask=m_from, other=0.0), b_root)
    b_score = tl.where(active, b_score, float("-inf"))
    o_to = slot * W + o_node
    tl.store(p_token + o_to, b_token, mask=m_node)
    tl.store(p_parent + o_to, b_parent, mask=m_node)
    tl.store(p_score + o_to, b_score, mask=m_node)


def spread_trees_kernel(
    tokens: Tensor, length: Tensor, active: Tensor, slot: Tensor, token: Tensor, parent: Tensor, score: Tensor
) -> _Tree:
    """``spread_trees`` in Triton, one launch.  Raises ``ValueError`` for tensors the kernel cannot take."""
    check_tensor("tokens", tokens, 2, torch.int64)
    check_tensor("slot", slot, 1, torch.int64, like=tokens)
    check_tensor("token", token, 2, torch.int64, like=tokens)
    slots, (N, W) = tokens.shape[0], token.shape
    for name, tensor, dtype, shape in (
        ("length", length, torch.int64, (slots,)),
        ("active", active, torch.bool, (slots,)),
        ("slot", slot, torch.int64, (N,)),
        ("parent", parent, torch.int64, (N, W)),
        ("score", score, torch.float32, (N, W)),
    ):
        check_tensor(name, tensor, len(shape), dtype, like=tokens)
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, but {list(shape)} fits the other arguments")
    # no more trees than slots, as a rule: one kernel for any number of requests
    block_n = next_power_of_2(max(slots, N))
    made = tokens.new_empty(slots, W), tokens.new_empty(slots, W), score.new_empty(slots, W)
    _spread_trees[(slots,)](
        tokens, length, active, slot, token, parent, score, *made,
        tokens.shape[1], N, W, BLOCK=next_power_of_2(W), BLOCK_N=block_n, num_warps=1,
    )  # fmt: skip
    return made


_INPUTS = ("tokens", "length", "slot", "from_token", "from_parent")
_TYPES = {
    **{f"p_{name}": "*i64" for name in (*_INPUTS, "token", "parent")},
    **{"p_active": "*i1", "p_from_score": "*fp32", "p_score": "*fp32"},
    **dict.fromkeys(("T", "N", "W"), "i32"),
}
COMPILE_CASES = [
    CompileCase(_spread_trees, _TYPES, {"BLOCK": W, "BLOCK_N": N}, num_warps=1)
    for W, N in ((1, 1), (16, 64), (64, 512))
]
