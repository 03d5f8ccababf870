"""The first pass over a vocabulary of logits: of every block of columns the best, in order, and its share of a softmax.

What follows (marginals.py) reads a few numbers for each block and never the logits again.  Rows are few and columns
many, so blocks are what fills a GPU; the best are taken one by one from a tile that stays in registers, by two
reductions of 32-bit integers each, which a warp does in an instruction.
"""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from redraft.kernels.filters import FP32_MAX, order_bits, scale_device, scale_logits
from redraft.kernels.triton_support import CompileCase, check_tensor, jit, next_power_of_2, tl

ABSENT = -(2**31)
"""Rank of what is no column: lower than that of -inf."""
_MOST_BLOCKS = 128
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True, slots=True)
class BlockTops:
    """Of R rows' blocks of columns."""

    rank: Tensor
    """[R, blocks, kept] int32, best first: order as the scaled logits do, which ``flip_device`` makes of them again.

    ``ABSENT`` where a block has fewer columns."""
    column: Tensor
    """[R, blocks, kept] int32; any where absent."""
    highest: Tensor
    """[R, blocks] fp32, the largest scaled logit, or fp32's lowest where all are -inf."""
    share: Tensor
    """[R, blocks] fp32, sum of the exponentials of what the scaled logits are below it; 0 where all are -inf."""


def block_size(columns: int) -> int:
    """Columns of a block: enough blocks for a GPU, few enough for one program to see what is left of them."""
    least = max(1024, next_power_of_2(-(-columns // _MOST_BLOCKS)))
    return min(least, next_power_of_2(columns))


def warps(numbers: int) -> int:
    """Of a program that holds so many (a power of two) in registers, 16 a thread."""
    return min(max(numbers // 512, 1), 8)


def block_tops_twin(logits: Tensor, scale: Tensor, kept: int, block: int) -> BlockTops:
    """``block_tops_kernel`` in plain torch."""
    N, C = logits.shape[0], logits.shape[2]
    z = scale_logits(logits.flatten(0, 1), scale.repeat(N))
    padding = -C % block
    parts = functional.pad(z, (0, padding), value=-torch.inf).view(len(z), -1, block)
    highest = parts.amax(-1).clamp_min(-FP32_MAX)
    share = (parts - highest.unsqueeze(-1)).exp().sum(-1)
    rank = functional.pad(order_bits(z), (0, padding), value=ABSENT).view(len(z), -1, block)
    rank, place = rank.sort(dim=-1, descending=True, stable=True)
    column = place + torch.arange(0, C + padding, block, device=z.device).unsqueeze(1)
    return BlockTops(rank[..., :kept].int(), column[..., :kept].int(), highest, share)


@jit
def flip_device(bits):
    """Between fp32's bits and an int32 that orders as the numbers do (but -0 below 0): its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@jit(do_not_specialize=["D"])  # type: ignore[untyped-decorator]
def _best_of_block(
    p_logits, p_scale, p_rank, p_column, p_highest, p_share, D, C, STRIDE, KEPT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row and ``BLOCK`` columns of ``p_logits`` [N, D, C], whose N are ``STRIDE`` apart."""
    row, block = tl.program_id(0), tl.program_id(1)
    o_column = block * BLOCK + tl.arange(0, BLOCK)
    m_column = o_column < C
    p_row = p_logits + (row // D).to(tl.int64) * STRIDE + (row % D).to(tl.int64) * C
    b_logit = tl.load(p_row + o_column, mask=m_column, other=float("-inf"))
    b_z = scale_device(b_logit, tl.load(p_scale + row % D))
    # a finite number, so that -inf is below it also in blocks of nothing else
    highest = tl.maximum(tl.max(b_z, 0), -3.4028234663852886e38)
    o_out = row.to(tl.int64) * tl.num_programs(1) + block
    tl.store(p_highest + o_out, highest)
    tl.store(p_share + o_out, tl.sum(tl.exp(b_z - highest), 0))
    b_rank = tl.where(m_column, flip_device(b_z.to(tl.int32, bitcast=True)), -2147483648)
    for place in range(KEPT):
        best = tl.max(b_rank, 0)
        column = tl.min(tl.where(b_rank == best, o_column, 2147483647), 0)
        tl.store(p_rank + o_out * KEPT + place, best)
        tl.store(p_column + o_out * KEPT + place, column)
        b_rank = tl.where(o_column == column, -2147483648, b_rank)


def block_tops_kernel(logits: Tensor, scale: Tensor, kept: int, block: int) -> BlockTops:
    """The ``kept`` best columns of every ``block``, in one launch; equals in the order of their columns.

    Args:
        logits: [N, D, C] bf16, fp16 or fp32; a NaN counts as -inf; the N may lie apart.
        scale: [D] fp32, what a row's logits are divided by.
        kept: at most ``block``.
        block: columns, a power of two.

    Returns R = N * D rows.  Raises ``ValueError`` for tensors the kernel cannot take.
    """
    if logits.dim() != 3 or 0 in logits.shape[1:]:
        raise ValueError(f"logits must be [N, D, C] with rows and columns, not {list(logits.shape)}")
    N, D, C = logits.shape
    check_tensor("logits[0]", logits[0] if N else logits.flatten(0, 1), 2, *_DTYPES)
    check_tensor("scale", scale, 1, torch.float32, like=logits)
    if scale.shape[0] != D:
        raise ValueError(f"scale must have one number for each of {D} depths, not {scale.shape[0]}")
    if not 1 <= kept <= block:
        raise ValueError(f"1 to {block} columns of a block of {block} can be kept, not {kept}")
    R, blocks = N * D, -(-C // block)
    rank, column = (torch.empty(R, blocks, kept, dtype=torch.int32, device=logits.device) for _ in range(2))
    highest, share = (torch.empty(R, blocks, dtype=torch.float32, device=logits.device) for _ in range(2))
    if R:
        _best_of_block[(R, blocks)](
            logits, scale, rank, column, highest, share, D, C, logits.stride(0),
            KEPT=kept, BLOCK=block, num_warps=warps(block), enable_fp_fusion=False,
        )  # fmt: skip
    return BlockTops(rank, column, highest, share)


_TYPES = {
    **{"p_scale": "*fp32", "p_highest": "*fp32", "p_share": "*fp32", "p_rank": "*i32", "p_column": "*i32"},
    **dict.fromkeys(("D", "C", "STRIDE"), "i32"),
}
COMPILE_CASES = [
    CompileCase(
        _best_of_block,
        {"p_logits": dtype, **_TYPES},
        {"KEPT": kept, "BLOCK": block},
        num_warps=warps(block),
        divisible=("C", "STRIDE"),
        enable_fp_fusion=False,
    )
    for dtype, kept, block in (("*bf16", 8, 1024), ("*fp16", 64, 2048), ("*fp32", 32, 4096))
]
