"""What a draft believes of every row: its likeliest tokens and their log-probabilities, leaning towards the noise.

The target takes argmax(z + T g) with the keyed noise g (noise.py).  Leaning the same way, the draft believes in v by
softmax((z + T g) / c) with c fitted per depth; at T = 0 that is the plain softmax.  Noise is drawn for the ``NOISED``
likeliest tokens of a row, and the softmax is then over those.

On a GPU that is two launches, whatever the vocabulary: one program per row and block of columns leaves the block's best
in order and its share of the softmax (block_tops.py), then one program per row takes the best of the blocks, looks
their tokens up and draws their noise.
"""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.kernels.block_tops import block_size, block_tops_kernel, flip_device, warps
from redraft.kernels.filters import FP32_MAX
from redraft.kernels.noise import gumbel, gumbel_of_word_device, log_device
from redraft.kernels.triton_support import CompileCase, check_tensor, jit, next_power_of_2, tl, use_triton
from redraft.kernels.vocab_cpu import MOST, best_of_rows, is_compiled_for

NOISED = 32
"""Of these likeliest tokens of a row the keyed noise is computed at T > 0."""
MAX_KEPT = 64
"""Columns of a row that the kernels can keep; a tree has no room for more tokens of one place."""
_INF = float("inf")


@dataclass(frozen=True, slots=True)
class Noise:
    """Keys of N blocks' noise (noise.py)."""

    seed: Tensor
    """[N] int64; [S + 1] with ``slot``."""
    first: Tensor
    """[N] int64, index in the text of the token that a block's first row predicts."""
    temperature: Tensor
    """[N] fp32; without noise where it is 0; [S + 1] with ``slot``."""
    slot: Tensor | None = None
    """[N] int64, where a block's seed and temperature are found; None where block n has the n-th."""


def marginals(
    logits: Tensor,
    scale: Tensor,
    branch: int,
    vocabulary: Tensor | None,
    noise: Noise | None,
    own: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``branch`` best tokens of every row and their log-probabilities, best first, [N, D, branch] each.

    A NaN counts as -inf, and so do log-probabilities in rows of nothing else.  Equals come in the order of their
    columns on a GPU, in any order elsewhere.  There are fewer than ``branch`` where there are fewer columns.

    Args:
        logits: [N, D, V' + E] bf16, fp16 or fp32; on a GPU the blocks may lie apart.
        scale: [D] fp32, the c of every depth.
        branch: tokens kept.
        vocabulary: [V'] int64 target id of every column; None if they are the same.
        noise: None where all temperatures are 0.
        own: [N, E] int64 target ids of the last columns, which differ from block to block; None if E is 0.
    """
    fits = branch <= MAX_KEPT and use_triton(logits, scale)
    return (marginals_kernel if fits else marginals_twin)(logits, scale, branch, vocabulary, noise, own)


def marginals_twin(
    logits: Tensor,
    scale: Tensor,
    branch: int,
    vocabulary: Tensor | None,
    noise: Noise | None,
    own: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``marginals`` in plain torch."""
    kept = min(branch, logits.shape[-1])
    if noise is None:
        z, column, total = _best(logits, scale, kept)
        return _ids(column, vocabulary, own), torch.where(z > -_INF, z - total, -_INF)
    z, column, total = _best(logits, scale, min(max(NOISED, branch), logits.shape[-1]))
    token, drafted = _ids(column, vocabulary, own), logits.shape[1]
    seed, temperature = noise.seed, noise.temperature
    if noise.slot is not None:
        seed, temperature = seed[noise.slot], temperature[noise.slot]
    produced = (noise.first.unsqueeze(1) + torch.arange(drafted, device=logits.device)).flatten()
    drawn = gumbel(seed.repeat_interleave(drafted), produced, token.flatten(0, 1)).view_as(z) / scale[:, None]
    hot = temperature[:, None, None]
    z = torch.where(hot > 0, z + hot * drawn, z)
    total = torch.where(hot > 0, z.logsumexp(-1, keepdim=True), total)
    z, place = z.sort(dim=-1, descending=True, stable=True)
    z, place = z[..., :kept], place[..., :kept]
    return token.gather(-1, place), torch.where(z > -_INF, z - total, -_INF)


def _best(logits: Tensor, scale: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``kept`` best scaled logits of every row, their columns, and the row's log-sum-exp."""
    if kept <= MOST and is_compiled_for(logits):
        return best_of_rows(logits, scale, kept)
    logits = (logits.float() / scale[:, None]).nan_to_num_(nan=-_INF, posinf=FP32_MAX, neginf=-_INF)
    z, column = logits.topk(kept, -1)
    return z, column, logits.logsumexp(-1, keepdim=True)


def _ids(column: Tensor, vocabulary: Tensor | None, own: Tensor | None) -> Tensor:
    if vocabulary is None:
        return column
    if own is None:
        return vocabulary[column]
    behind = column - len(vocabulary)
    mine = own.gather(1, behind.clamp_min(0).flatten(1)).view_as(column)
    return torch.where(behind < 0, vocabulary[column.clamp_max(len(vocabulary) - 1)], mine)


@jit(do_not_specialize=["D", "C", "E", "BLOCKS", "BRANCH"])  # type: ignore[untyped-decorator]
def _best_of_row(
    p_rank, p_column, p_highest, p_share, p_scale, p_vocabulary, p_own, p_slot, p_seed, p_first, p_temperature,
    p_token, p_value, D, C, E, BLOCKS, BRANCH,
    KEPT: tl.constexpr, NOISY: tl.constexpr, SLOTS: tl.constexpr, PRUNED: tl.constexpr, OWN: tl.constexpr,
    BLOCK_BLOCKS: tl.constexpr, BLOCK_RANKED: tl.constexpr, BLOCK_KEPT: tl.constexpr,
):  # fmt: skip
    """One program per row: the best of its blocks' best, their tokens and noise -> ``p_token``, ``p_value``.

    Without noise KEPT is BRANCH.
    """
    row = tl.program_id(0).to(tl.int64)
    block, depth = row // D, row % D
    o_block = tl.arange(0, BLOCK_BLOCKS)
    b_highest = tl.load(p_highest + row * BLOCKS + o_block, mask=o_block < BLOCKS, other=float("-inf"))
    b_share = tl.load(p_share + row * BLOCKS + o_block, mask=o_block < BLOCKS, other=0.0)
    # a number even of rows of nothing but -inf, as the logarithm of their sum, 0, is one of the polynomial
    highest = tl.max(b_highest, 0)
    total = highest + log_device(tl.sum(b_share * tl.exp(b_highest - highest), 0))

    o_ranked, o_kept = tl.arange(0, BLOCK_RANKED), tl.arange(0, BLOCK_KEPT)
    m_ranked, m_kept = o_ranked < BLOCKS * KEPT, o_kept < KEPT
    b_rank = tl.load(p_rank + row * BLOCKS * KEPT + o_ranked, mask=m_ranked, other=-2147483648)
    b_column = tl.load(p_column + row * BLOCKS * KEPT + o_ranked, mask=m_ranked, other=2147483647)
    b_best, b_at = tl.full([BLOCK_KEPT], 0, tl.int32), tl.full([BLOCK_KEPT], 0, tl.int32)
    for place in range(KEPT):
        best = tl.max(b_rank, 0)
        column = tl.min(tl.where(b_rank == best, b_column, 2147483647), 0)
        b_rank = tl.where(b_column == column, -2147483648, b_rank)
        b_best = tl.where(o_kept == place, best, b_best)
        b_at = tl.where(o_kept == place, column, b_at)
    b_z = tl.where(m_kept, flip_device(b_best).to(tl.float32, bitcast=True), float("-inf"))

    b_token = b_at.to(tl.int64)
    if PRUNED:
        b_token = tl.load(p_vocabulary + b_at, mask=m_kept & (b_at < C - E), other=0)
        if OWN:
            # the last E columns' ids are the block's own
            m_own = m_kept & (b_at >= C - E)
            b_token = tl.where(m_own, tl.load(p_own + block * E + b_at - (C - E), mask=m_own, other=0), b_token)

    if NOISY:
        key = block
        if SLOTS:
            key = tl.load(p_slot + block)
        hot = tl.load(p_temperature + key)
        b_group = (b_token >> 2).to(tl.uint32)
        b_zero = b_group * 0
        b_produced = b_zero + (tl.load(p_first + block) + depth).to(tl.uint32)
        w0, w1, w2, w3 = tl.philox(tl.load(p_seed + key), b_group, b_produced, b_zero, b_zero)
        b_lane = b_token & 3
        b_word = tl.where(b_lane < 2, tl.where(b_lane == 0, w0, w1), tl.where(b_lane == 2, w2, w3))
        b_drawn = tl.div_rn(gumbel_of_word_device(b_word), tl.zeros_like(b_z) + tl.load(p_scale + depth))
        b_z = tl.where(hot > 0.0, b_z + hot * b_drawn, b_z)
        highest = tl.maximum(tl.max(b_z, 0), -3.4028234663852886e38)
        noisy_total = highest + log_device(tl.sum(tl.exp(b_z - highest), 0))
        total = tl.where(hot > 0.0, noisy_total, total)
        # 0 and -0 are equals
        b_rank_kept = flip_device(tl.where(b_z == 0.0, 0.0, b_z).to(tl.int32, bitcast=True))
        b_rank_kept = tl.where(m_kept, b_rank_kept, -2147483648)
        b_drafted = tl.zeros_like(b_token)
        for place in range(BRANCH):
            best = tl.max(b_rank_kept, 0)
            at = tl.min(tl.where(b_rank_kept == best, o_kept, BLOCK_KEPT), 0)
            b_rank_kept = tl.where(o_kept == at, -2147483648, b_rank_kept)
            b_best = tl.where(o_kept == place, best, b_best)
            b_drafted = tl.where(o_kept == place, tl.sum(tl.where(o_kept == at, b_token, 0), 0), b_drafted)
        b_z = flip_device(b_best).to(tl.float32, bitcast=True)
        b_token = b_drafted
    m_out = o_kept < BRANCH
    tl.store(p_token + row * BRANCH + o_kept, b_token, mask=m_out)
    tl.store(p_value + row * BRANCH + o_kept, b_z - total, mask=m_out)


def marginals_kernel(
    logits: Tensor,
    scale: Tensor,
    branch: int,
    vocabulary: Tensor | None,
    noise: Noise | None,
    own: Tensor | None = None,
    *,
    block: int | None = None,
) -> tuple[Tensor, Tensor]:
    """``marginals`` in Triton, two launches; ``block`` is the columns of the first one's programs, a power of two.

    Raises ``ValueError`` for tensors the kernels cannot take and for more than ``MAX_KEPT`` tokens of a row.
    """
    if not 1 <= branch <= MAX_KEPT:
        raise ValueError(f"the kernels keep 1 to {MAX_KEPT} tokens of a row, not {branch}")
    _check(logits, vocabulary, noise, own)
    N, D, C = logits.shape
    branch = min(branch, C)
    kept = branch if noise is None else min(max(NOISED, branch), C)
    tops = block_tops_kernel(logits, scale, kept, block or block_size(C))
    token = torch.empty(N, D, branch, dtype=torch.int64, device=logits.device)
    value = torch.empty(N, D, branch, dtype=torch.float32, device=logits.device)
    slot, seed, first, temperature = token, token, token, value  # which is not read without noise
    if noise is not None:
        slot = token if noise.slot is None else noise.slot
        seed, first, temperature = noise.seed, noise.first, noise.temperature
    blocks = tops.share.shape[1]
    ranked = next_power_of_2(blocks * kept)
    if N:
        _best_of_row[(N * D,)](
            tops.rank, tops.column, tops.highest, tops.share, scale,
            token if vocabulary is None else vocabulary, token if own is None else own, slot, seed, first, temperature,
            token, value, D, C, 0 if own is None else own.shape[1], blocks, branch,
            KEPT=kept, NOISY=noise is not None, SLOTS=noise is not None and noise.slot is not None,
            PRUNED=vocabulary is not None, OWN=own is not None,
            BLOCK_BLOCKS=next_power_of_2(blocks), BLOCK_RANKED=ranked, BLOCK_KEPT=next_power_of_2(kept),
            num_warps=warps(ranked), enable_fp_fusion=False,
        )  # fmt: skip
    return token, value


def _check(logits: Tensor, vocabulary: Tensor | None, noise: Noise | None, own: Tensor | None) -> None:
    """Raise ``ValueError`` for what does not fit ``logits``, which the first launch checks itself."""
    if logits.dim() != 3:
        raise ValueError(f"logits must be [N, D, V' + E], not {list(logits.shape)}")
    N, _, C = logits.shape
    if own is not None:
        check_tensor("own", own, 2, torch.int64, like=logits)
        if vocabulary is None or own.shape[0] != N:
            raise ValueError(f"own must be [{N}, E], beside a vocabulary, not {list(own.shape)}")
    if vocabulary is not None:
        check_tensor("vocabulary", vocabulary, 1, torch.int64, like=logits)
        columns = len(vocabulary) + (0 if own is None else own.shape[1])
        if columns != C:
            raise ValueError(f"logits have {C} columns, but there are ids for {columns}")
    if noise is not None:
        keys = N if noise.slot is None else noise.seed.shape[0]
        for name, tensor, dtype, length in (
            ("noise.seed", noise.seed, torch.int64, keys),
            ("noise.first", noise.first, torch.int64, N),
            ("noise.temperature", noise.temperature, torch.float32, keys),
            ("noise.slot", noise.first if noise.slot is None else noise.slot, torch.int64, N),
        ):
            check_tensor(name, tensor, 1, dtype, like=logits)
            if tensor.shape[0] != length:
                raise ValueError(f"{name} must have {length} elements, but has {tensor.shape[0]}")


_TYPES = {
    **{f"p_{name}": "*i32" for name in ("rank", "column")},
    **{f"p_{name}": "*fp32" for name in ("highest", "share", "scale", "temperature", "value")},
    **{f"p_{name}": "*i64" for name in ("vocabulary", "own", "slot", "seed", "first", "token")},
    **dict.fromkeys(("D", "C", "E", "BLOCKS", "BRANCH"), "i32"),
}
COMPILE_CASES = [
    CompileCase(
        _best_of_row,
        _TYPES,
        {
            **{"KEPT": kept, "NOISY": noisy, "SLOTS": noisy, "PRUNED": pruned, "OWN": own},
            **{"BLOCK_BLOCKS": blocks, "BLOCK_RANKED": ranked, "BLOCK_KEPT": kept},
        },
        num_warps=warps(ranked),
        enable_fp_fusion=False,
    )
    for kept, noisy, pruned, own, blocks, ranked in (
        (1, False, True, False, 16, 16),
        (8, False, True, False, 16, 128),
        (8, False, False, False, 128, 1024),
        (32, True, True, True, 16, 512),
        (64, True, True, False, 128, 8192),
    )
]
