"""Unite two candidate trees of the same root, so that two drafters fill one round's rows without repeating each other.

A node of the second tree whose path of tokens the first tree has too gives way to the first's node, which takes over
its children and the larger of both scores.  Two nodes have the same path if they and all their ancestors, pair by
pair, carry the same tokens.  The op looks at all pairs of nodes at once.  The twin doubles the stretch of path it has
compared at each step, so it takes as many steps as the smaller tree's size has binary digits; the kernel goes up from
all nodes together, in one launch, as many steps as the shallower tree is deep.
"""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
from torch import Tensor

from redraft.kernels.trees_cpu import merge_trees_compiled
from redraft.kernels.triton_support import CompileCase, check_tensor, jit, next_power_of_2, tl, use_triton

MAX_WIDTH = 64
"""Of each tree, for the kernel: it keeps all pairs of nodes in registers.  Wider trees take the twin on a GPU too."""
_Tree = tuple[Tensor, Tensor, Tensor]
_INF = float("inf")
_ROOT, _ABSENT_FIRST, _ABSENT_SECOND = (torch.iinfo(torch.int64).min + i for i in range(3))
"""In place of tokens: roots equal roots only, absent nodes nothing."""


def merge_trees(first: _Tree, second: _Tree) -> _Tree:
    """The union of two trees as one.

    Args:
        first: token [N, A] int64, parent [N, A] int64 and score [N, A] fp32 as in ``drafts.base.Candidates``: node 0
            is the root, a parent's number is lower than the node's own, a score of -inf or NaN means absent.
        second: the same of width B.  Its root stands for the same text as the first's.

    Returns:
        token, parent and score of width A + B - 1, parents again lower than their children: the first tree's nodes at
        their numbers, then the second's without its root.  A node of the second whose path is in the first is absent:
        its score is -inf and its parent 0.  Where the first has a path more than once, its lowest node takes over.
        Paths that only the second has are taken as they are, repeats included.

    Raises ``ValueError`` for trees whose shapes do not fit.
    """
    if max(first[0].shape[1], second[0].shape[1]) <= MAX_WIDTH and use_triton(*first, *second):
        return merge_trees_kernel(_contiguous(first), _contiguous(second))
    return merge_trees_compiled(first, second) or merge_trees_twin(first, second)


def _contiguous(tree: _Tree) -> _Tree:
    token, parent, score = tree
    return token.contiguous(), parent.contiguous(), score.contiguous()


def _sizes(first: _Tree, second: _Tree) -> tuple[int, int, int]:
    """N, A and B; raises as ``merge_trees`` has it."""
    (N, A), B = first[0].shape, second[0].shape[1]
    for name, tree, shape in (("first", first, (N, A)), ("second", second, (N, B))):
        if any(tensor.shape != shape for tensor in tree):
            shapes = ", ".join(str(list(tensor.shape)) for tensor in tree)
            raise ValueError(f"the {name} tree's token, parent and score must be {list(shape)}, not {shapes}")
    return N, A, B


def merge_trees_twin(first: _Tree, second: _Tree) -> _Tree:
    """``merge_trees`` in plain torch."""
    N, A, B = _sizes(first, second)
    (token_a, parent_a, score_a), (token_b, parent_b, score_b) = first, second
    # [N, A * B] for every pair of nodes: do they match, and the pair of their parents
    own_a = torch.where(score_a > -_INF, token_a, _ABSENT_FIRST)
    own_b = torch.where(score_b > -_INF, token_b, _ABSENT_SECOND)
    own_a.select(1, 0).fill_(_ROOT)
    own_b.select(1, 0).fill_(_ROOT)
    match = (own_a.unsqueeze(2) == own_b.unsqueeze(1)).flatten(1)
    above = ((parent_a * B).unsqueeze(2) + parent_b.unsqueeze(1)).flatten(1)
    # paths of different lengths differ where the shorter one, at most as long as the smaller tree, reaches its root
    for step in range((min(A, B) - 1).bit_length()):
        above = above.gather(1, above) if step else above
        match = match & match.gather(1, above)

    # [N, B] the second's nodes' numbers in the union: the lowest match, or else behind the first's nodes
    number_a = torch.arange(A, device=token_a.device).unsqueeze(1)
    number_b = torch.arange(A - 1, A + B - 1, device=token_a.device)
    number = torch.where(match.view(N, A, B), number_a, number_b).amin(1)
    parent = number.gather(1, parent_b).masked_fill_(number < A, 0)
    score = torch.cat([score_a, torch.full_like(score_b, -_INF)[:, 1:]], 1)
    return (
        torch.cat([token_a, token_b[:, 1:]], 1),
        torch.cat([parent_a, parent[:, 1:]], 1),
        score.scatter_reduce_(1, number, score_b, "amax"),
    )


@jit
def _merge_trees(
    p_token_a, p_parent_a, p_score_a, p_token_b, p_parent_b, p_score_b, p_token, p_parent, p_score,
    A, B, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
    ROOT: tl.constexpr, ABSENT_A: tl.constexpr, ABSENT_B: tl.constexpr,
):  # fmt: skip
    """One program per row.  ``b_match`` [BLOCK_A, BLOCK_B]: may the paths of these two nodes still be the same?"""
    row = tl.program_id(0).to(tl.int64)
    p_token_a += row * A
    p_parent_a += row * A
    p_score_a += row * A
    p_token_b += row * B
    p_parent_b += row * B
    p_score_b += row * B
    o_out = row * (A + B - 1)
    o_a = tl.arange(0, BLOCK_A)
    o_b = tl.arange(0, BLOCK_B)
    m_a = o_a < A
    m_b = o_b < B

    # from all nodes up to the root together, comparing what is met at each step
    b_match = (m_a[:, None] & m_b[None, :]).to(tl.int32)
    b_up_a = tl.where(m_a, o_a, 0)
    b_up_b = tl.where(m_b, o_b, 0)
    while (tl.max(b_up_a, 0) > 0) & (tl.max(b_up_b, 0) > 0):
        m_up_a = b_up_a > 0
        m_up_b = b_up_b > 0
        b_own_a = tl.load(p_token_a + b_up_a, mask=m_up_a, other=ROOT)
        b_own_b = tl.load(p_token_b + b_up_b, mask=m_up_b, other=ROOT)
        m_there_a = tl.load(p_score_a + b_up_a, mask=m_up_a, other=0.0) > float("-inf")
        m_there_b = tl.load(p_score_b + b_up_b, mask=m_up_b, other=0.0) > float("-inf")
        b_own_a = tl.where(m_there_a, b_own_a, ABSENT_A)
        b_own_b = tl.where(m_there_b, b_own_b, ABSENT_B)
        b_match = tl.where(b_own_a[:, None] == b_own_b[None, :], b_match, 0)
        b_up_a = tl.load(p_parent_a + b_up_a, mask=m_up_a, other=0).to(tl.int32)
        b_up_b = tl.load(p_parent_b + b_up_b, mask=m_up_b, other=0).to(tl.int32)
    # one tree's nodes have all arrived: who of the other's has not has a longer path
    b_match = tl.where((b_up_a == 0)[:, None] & (b_up_b == 0)[None, :], b_match, 0)

    # the second's nodes' numbers in the union: the lowest match, or else behind the first's nodes
    b_number = tl.min(tl.where(b_match > 0, o_a[:, None], BLOCK_A), 0)
    b_number = tl.where(b_number < BLOCK_A, b_number, A - 1 + o_b)
    b_parent = tl.load(p_parent_b + o_b, mask=m_b, other=0).to(tl.int32)
    b_above = tl.sum(tl.where(b_parent[:, None] == o_b[None, :], b_number[None, :], 0), 1)

    # a node that takes over has the larger score
    b_score_a = tl.load(p_score_a + o_a, mask=m_a, other=0.0)
    b_score_b = tl.load(p_score_b + o_b, mask=m_b, other=float("-inf"))
    m_over = (b_number[None, :] == o_a[:, None]) & (b_score_b > float("-inf"))[None, :]
    b_more = tl.max(tl.where(m_over, b_score_b[None, :], float("-inf")), 1)
    # roots are the same whatever their scores; a NaN stays one, as in the twin
    b_more = tl.where(o_a == 0, tl.load(p_score_b), b_more)
    b_score_a = tl.where((b_more > b_score_a) | (b_more != b_more), b_more, b_score_a)
    tl.store(p_token + o_out + o_a, tl.load(p_token_a + o_a, mask=m_a, other=0), mask=m_a)
    tl.store(p_parent + o_out + o_a, tl.load(p_parent_a + o_a, mask=m_a, other=0), mask=m_a)
    tl.store(p_score + o_out + o_a, b_score_a, mask=m_a)

    m_own = m_b & (o_b > 0)
    m_gone = b_number < A
    o_out += A - 1
    tl.store(p_token + o_out + o_b, tl.load(p_token_b + o_b, mask=m_own, other=0), mask=m_own)
    tl.store(p_parent + o_out + o_b, tl.where(m_gone, 0, b_above).to(tl.int64), mask=m_own)
    tl.store(p_score + o_out + o_b, tl.where(m_gone, float("-inf"), b_score_b), mask=m_own)


def merge_trees_kernel(first: _Tree, second: _Tree) -> _Tree:
    """``merge_trees`` in Triton, one launch.

    Raises ``ValueError`` as it does, for tensors the kernel cannot take and for trees wider than ``MAX_WIDTH``.
    """
    N, A, B = _sizes(first, second)
    if max(A, B) > MAX_WIDTH:
        raise ValueError(f"a tree may have {MAX_WIDTH} nodes, the root included, but these have {A} and {B}")
    for name, tree in (("first", first), ("second", second)):
        for part, tensor, dtype in zip(("token", "parent", "score"), tree, _DTYPES, strict=True):
            check_tensor(f"the {name} tree's {part}", tensor, 2, dtype, like=first[0])
    token, parent, score = (first[0].new_empty(N, A + B - 1, dtype=dtype) for dtype in _DTYPES)
    block_a, block_b = next_power_of_2(A), next_power_of_2(B)
    _merge_trees[(N,)](
        *first, *second, token, parent, score,
        A, B, BLOCK_A=block_a, BLOCK_B=block_b, num_warps=_warps(block_a, block_b), **_OWN,
    )  # fmt: skip
    return token, parent, score


def _warps(block_a: int, block_b: int) -> int:
    return max(1, block_a * block_b // 512)


_OWN = {"ROOT": _ROOT, "ABSENT_A": _ABSENT_FIRST, "ABSENT_B": _ABSENT_SECOND}
_DTYPES = (torch.int64, torch.int64, torch.float32)
_TYPES = {
    **{f"p_{name}{tree}": "*i64" for name in ("token", "parent") for tree in ("_a", "_b", "")},
    **{f"p_score{tree}": "*fp32" for tree in ("_a", "_b", "")},
    **dict.fromkeys(("A", "B"), "i32"),
}
COMPILE_CASES = [
    CompileCase(_merge_trees, _TYPES, {"BLOCK_A": A, "BLOCK_B": B, **_OWN}, num_warps=_warps(A, B))
    for A, B in ((1, 1), (16, 16), (8, 64), (64, 64))
]
