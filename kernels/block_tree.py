"""Make a tree of what a block draft believes, which guesses every depth at once.

A node's probability is taken as the product along its path of its tokens' probabilities: the draft's marginals, or what
they are behind the token before.  The tree of n nodes with the greatest expected acceptance length is then the n
prefixes with the greatest products (DDTree, arXiv 2604.12989), and a prefix is never less probable than what goes on
from it, so a node's parent is among them whenever the node is.

The paper takes them one by one from a heap, and so does the kernel: the whole tree in one launch.  The twin goes depth
by depth: of every depth the best n are kept, since a prefix that n others of its depth outdo is not in the tree, and
nor is anything that goes on from it.  At the end the n best of all depths are taken.  That is exact, of fixed shape,
and in torch calls cheaper than n steps of best first: half the time for 8 nodes of 7 depths, a seventh for 63.

Ties go to the lower depth, then to the child of the earlier node, then to the earlier candidate.
"""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from redraft.kernels.trees_cpu import block_tree_compiled
from redraft.kernels.triton_support import CompileCase, check_tensor, jit, next_power_of_2, tl, use_triton

MAX_NODES = 63
"""Drafted nodes per row: with the root 64, all that ``pack_tree`` takes."""
MAX_CANDIDATES = 32
"""Per depth, for the kernel: it keeps those behind every node in registers.  With more, the twin runs on a GPU too."""
_INF = float("inf")
_MAX_DEPTHS = 65534
"""In the kernel a depth is 16 bits of a number."""


def block_tree(anchor: Tensor, top_token: Tensor, top_logprob: Tensor, nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``nodes`` most probable prefixes, best first.

    Args:
        anchor: [N] int64, the roots' tokens.
        top_token: [N, D, K] int64, candidates for depths 1 to D; siblings differ if a depth's candidates do.
        top_logprob: [N, D, K] fp32, natural logarithms of their probabilities, best first (which decides ties and
            nothing else); -inf or NaN where there is no candidate.  What rounding put above 0 counts as 0.  Or
            [N, D, K, K]: of candidate c behind candidate p of the depth before; at depth 1 only p = 0 is looked at.
        nodes: drafted nodes of a tree, 1 to ``MAX_NODES``.

    Returns:
        token, parent [N, W] int64 and score [N, W] fp32 with W = ``nodes`` + 1: node 0 is the root, of score 1.  A
        score is the exponential of the sum, in fp32 from depth 1 down, of the log-probabilities along the path.
        Where fewer than ``nodes`` prefixes exist, the last nodes are absent: their score is -inf, their parent 0 and
        their token any.

    Raises ``ValueError`` for a number of nodes out of range and for candidates whose shapes do not fit.
    """
    K = _sizes(anchor, top_token, top_logprob, nodes)[2]
    inputs = anchor.contiguous(), top_token.contiguous(), top_logprob.contiguous()
    if K <= MAX_CANDIDATES and use_triton(*inputs):
        return block_tree_kernel(*inputs, nodes)
    return block_tree_compiled(*inputs, nodes) or block_tree_twin(*inputs, nodes)


def _sizes(anchor: Tensor, top_token: Tensor, top_logprob: Tensor, nodes: int) -> tuple[int, int, int, bool]:
    """N, D, K and whether the log-probabilities are of pairs; raises as ``block_tree`` has it."""
    if not 1 <= nodes <= MAX_NODES:
        raise ValueError(f"nodes must be 1 to {MAX_NODES}, not {nodes}")
    shape = top_token.shape
    paired = top_logprob.dim() == 4
    known = len(shape) == 3 and top_logprob.shape == ((*shape, shape[2]) if paired else shape)
    if not known or anchor.shape != shape[:1] or 0 in shape[1:]:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (anchor, top_token, top_logprob))
        raise ValueError(
            f"anchor, top_token and top_logprob must be [N], [N, D, K] and [N, D, K] or [N, D, K, K], not {shapes}"
        )
    return *shape, paired


def block_tree_twin(
    anchor: Tensor, top_token: Tensor, top_logprob: Tensor, nodes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``block_tree`` in plain torch."""
    N, D, K, paired = _sizes(anchor, top_token, top_logprob, nodes)
    device = anchor.device

    # a cost is a negated log-probability; what is absent costs inf or NaN, which sort last
    # the difference, unlike a negation, makes no -0, which a sort by bits would tell from 0
    steps = (0 - top_logprob).clamp_(min=0).unbind(1)
    # the root, and prefixes that do not exist, so that all depths have the same width
    beam = functional.pad(top_logprob.new_zeros(N, 1), (0, nodes - 1), value=_INF)
    ends = torch.zeros(N, nodes, 1, dtype=torch.int64, device=device)
    costs, choices = [], []
    for step in steps:
        step = step.gather(1, ends.expand(N, nodes, K)) if paired else step.unsqueeze(1)
        # number nodes * K: candidate number % K after the previous depth's prefix number // K
        ranked, choice = (beam.unsqueeze(2) + step).flatten(1).sort(dim=1, stable=True)
        beam, ends = ranked[:, :nodes], (choice[:, :nodes] % K).unsqueeze(2)
        costs.append(beam)
        choices.append(choice)

    cost, order = torch.cat(costs, 1).sort(dim=1, stable=True)
    cost, order = cost[:, :nodes], order[:, :nodes]
    # now over all depths: code // K is the parent's number among all kept prefixes, where the root is the first
    # `nodes` of them, and code the token's number in a table that repeats a depth's candidates for each prefix
    depth = torch.arange(0, D * nodes * K, nodes * K, device=device).unsqueeze(1)
    code = (torch.stack(choices, 1)[:, :, :nodes] + depth).flatten(1).gather(1, order)
    number = order.new_zeros(N, (D + 1) * nodes)
    number.scatter_(1, order + nodes, torch.arange(1, nodes + 1, device=device).expand(N, nodes))
    token = top_token.unsqueeze(2).expand(N, D, nodes, K).flatten(1).gather(1, code)
    parent = number.gather(1, code // K)
    # absent nodes are depth 1's, of which there are `nodes` whatever exists: their parent is the root already
    score = torch.where(cost < _INF, cost.neg().exp_(), -_INF)
    return (
        torch.cat([anchor.unsqueeze(1), token], 1),
        functional.pad(parent, (1, 0)),
        functional.pad(score, (1, 0), value=1.0),
    )


@jit
def _block_tree(
    p_anchor, p_top_token, p_top_logprob, p_token, p_parent, p_score,
    D, K, NODES, PAIRED: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program per tree: best first, a node a step, among all candidates behind the nodes taken so far.

    A candidate's *key* orders as the contract has it: from the top its cost's bits, its depth, its parent's number and
    its own.  ``b_key`` [BLOCK, BLOCK_K] has those that may be taken, a row for each parent.
    """
    row = tl.program_id(0).to(tl.int64)
    p_top_token += row * D * K
    p_top_logprob += row * D * K * (K if PAIRED else 1)
    o_node = tl.arange(0, BLOCK)
    o_candidate = tl.arange(0, BLOCK_K)
    # an infinite cost: what is absent, was taken, or lies behind no node yet
    nothing = 0x7F80000000000000
    b_key = tl.full([BLOCK, BLOCK_K], nothing, tl.int64)
    b_taken = tl.full([BLOCK], nothing, tl.int64)
    # the root
    key = tl.full([], 0, tl.int64)
    for node in range(NODES):
        # open the node: the candidates behind it
        cost = (key >> 32).to(tl.int32).to(tl.float32, bitcast=True)
        depth = ((key >> 16) & 0xFFFF).to(tl.int32)
        o_step = depth * K
        if PAIRED:
            o_step = (o_step + (key.to(tl.int32) & (BLOCK_K - 1))) * K
        m_step = (o_candidate < K) & (depth < D) & (key < nothing)
        b_logprob = tl.load(p_top_logprob + o_step + o_candidate, mask=m_step, other=float("-inf"))
        # as in the twin no -0, whose bits are no number's; a NaN stays one
        b_cost = cost + tl.where(b_logprob > 0.0, 0.0, 0.0 - b_logprob)
        b_place = ((depth + 1) << 16) + node * BLOCK_K + o_candidate
        b_open = (b_cost.to(tl.int32, bitcast=True).to(tl.int64) << 32) | b_place
        b_open = tl.where(b_cost < float("inf"), b_open, nothing)
        b_key = tl.where(o_node[:, None] == node, b_open[None, :], b_key)
        # take the best
        key = tl.min(tl.min(b_key, 0), 0)
        b_key = tl.where(b_key == key, nothing, b_key)
        b_taken = tl.where(o_node == node, key, b_taken)

    # taken in step i is node i + 1
    m_node = o_node < NODES
    m_there = b_taken < nothing
    b_depth = tl.where(m_there, (b_taken >> 16) & 0xFFFF, 1)
    b_place = tl.where(m_there, b_taken & 0xFFFF, 0)
    b_cost = (b_taken >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    b_token = tl.load(p_top_token + (b_depth - 1) * K + b_place % BLOCK_K, mask=m_node & m_there, other=0)
    # in double precision, for the device's own in single is an approximation that grows worse with the cost
    b_score = tl.exp(-b_cost.to(tl.float64)).to(tl.float32)
    o_out = row * (NODES + 1) + 1 + o_node
    tl.store(p_token + o_out, b_token, mask=m_node)
    tl.store(p_parent + o_out, b_place // BLOCK_K, mask=m_node)
    tl.store(p_score + o_out, tl.where(m_there, b_score, float("-inf")), mask=m_node)
    o_root = row * (NODES + 1)
    tl.store(p_token + o_root, tl.load(p_anchor + row))
    tl.store(p_parent + o_root, tl.full([], 0, tl.int64))
    tl.store(p_score + o_root, 1.0)


def block_tree_kernel(
    anchor: Tensor, top_token: Tensor, top_logprob: Tensor, nodes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``block_tree`` in Triton, one launch; absent nodes' tokens are 0.

    Raises ``ValueError`` as it does, for tensors the kernel cannot take and for more than ``MAX_CANDIDATES`` a depth.
    """
    N, D, K, paired = _sizes(anchor, top_token, top_logprob, nodes)
    check_tensor("anchor", anchor, 1, torch.int64)
    check_tensor("top_token", top_token, 3, torch.int64, like=anchor)
    check_tensor("top_logprob", top_logprob, 3 + paired, torch.float32, like=anchor)
    if K > MAX_CANDIDATES or D > _MAX_DEPTHS:
        raise ValueError(
            f"there may be {MAX_CANDIDATES} candidates of {_MAX_DEPTHS} depths, but top_token has {K} of {D}"
        )
    token, parent = (anchor.new_empty(N, nodes + 1) for _ in range(2))
    score = anchor.new_empty(N, nodes + 1, dtype=torch.float32)
    block, block_k = next_power_of_2(nodes), next_power_of_2(K)
    _block_tree[(N,)](
        anchor, top_token, top_logprob, token, parent, score,
        D, K, nodes, PAIRED=paired, BLOCK=block, BLOCK_K=block_k, num_warps=_warps(block, block_k),
    )  # fmt: skip
    return token, parent, score


def _warps(block: int, block_k: int) -> int:
    """One warp agrees on the best key without a barrier; it holds 16 keys a thread."""
    return max(1, block * block_k // 512)


_TYPES = {
    **{f"p_{name}": "*i64" for name in ("anchor", "top_token", "token", "parent")},
    **dict.fromkeys(("p_top_logprob", "p_score"), "*fp32"),
    **dict.fromkeys(("D", "K", "NODES"), "i32"),
}
COMPILE_CASES = [
    CompileCase(_block_tree, _TYPES, {"PAIRED": paired, "BLOCK": P, "BLOCK_K": K}, num_warps=_warps(P, K))
    for P, K, paired in ((1, 1, False), (16, 8, True), (64, 8, False), (64, 32, True))
]
