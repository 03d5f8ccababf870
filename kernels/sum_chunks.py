"""Add up what flash-decoding found chunk by chunk (attention_partial.py), in a launch of its own.

A program per row and query head, so that what all SMs wrote is read by all of them.  Where it is little,
chunk_attention.py does it in its own launch; paged_attention.py chooses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from redraft.kernels.attention_items import Items, block_of
from redraft.kernels.attention_partial import Partial, add_chunk, divide, scale_of
from redraft.kernels.dependent_launch import launch_options, wait_device
from redraft.kernels.triton_support import CompileCase, jit, tl

STEP = 16
"""Chunks whose loads are under way at a time."""


def sum_chunks_kernel(partial: Partial, items: Items, out: Tensor, *, number: int = 0) -> None:
    """Write the rows of slab ``number`` to ``out`` [R, HQ, HD], contiguous; zeros for padding rows."""
    R, HQ, HD = out.shape
    start = number * items.slab
    _sum_chunks[(min(items.slab, R - start), HQ)](
        partial.highest, partial.weight, partial.total, items.row, out, start, items.chunks,
        HD=HD, BLOCK_D=block_of(HD), HQ=HQ, STEP=STEP, BLOCK_C=128, **launch_options(out.device),
        num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip


def sum_chunks_twin(partial: Partial, dtype: torch.dtype) -> Tensor:
    """[rows, HQ, HD] of ``dtype`` in plain torch, of ``chunk_attention_twin``'s results; zeros where there are none."""
    highest = partial.highest.amax(-1, keepdim=True)
    scale = torch.exp2(partial.highest - torch.where(highest == -torch.inf, 0.0, highest))
    weight, total = torch.zeros_like(scale[..., 0]), torch.zeros_like(partial.total[..., 0, :])
    for chunk in range(scale.shape[-1]):
        weight = weight + partial.weight[..., chunk] * scale[..., chunk]
        total = total + partial.total[..., chunk, :] * scale[..., chunk, None]
    return (total / torch.where(weight > 0, weight, 1.0).unsqueeze(-1)).to(dtype)


@jit(
    do_not_specialize=["first_row", "C"],
    do_not_specialize_on_alignment=["p_highest", "p_weight"],
)  # type: ignore[untyped-decorator]
def _sum_chunks(  # type: ignore[no-untyped-def]
    p_highest, p_weight, p_sum, p_chunks, p_out, first_row, C,
    HD: tl.constexpr, BLOCK_D: tl.constexpr, HQ: tl.constexpr, STEP: tl.constexpr, BLOCK_C: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One program per row and query head; a padding row has no chunks and gets zeros."""
    wait_device(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    chunks = tl.load(p_chunks + first_row + row)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < HD
    at = (row * HQ + head) * C
    o_chunk = tl.arange(0, BLOCK_C)
    b_highest = tl.full([BLOCK_C], float("-inf"), tl.float32)
    for start in range(0, chunks, BLOCK_C):
        m_chunk = start + o_chunk < chunks
        b_here = tl.load(p_highest + at + start + o_chunk, mask=m_chunk, other=float("-inf"))
        b_highest = tl.maximum(b_highest, b_here)
    highest = tl.max(b_highest, 0)
    weight = 0.0
    b_sum = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, chunks, STEP):
        for step in tl.static_range(STEP):
            here = start + step < chunks
            p_here = at + start + step
            scale = scale_of(tl.load(p_highest + p_here, mask=here, other=float("-inf")), highest)
            more = tl.load(p_weight + p_here, mask=here, other=0.0)
            b_total = tl.load(p_sum + p_here * HD + o_d, mask=here & m_d, other=0.0)
            weight, b_sum = add_chunk(weight, b_sum, more, b_total, scale, scale)
    b_out = divide(b_sum, weight, chunks)
    tl.store(p_out + ((first_row + row) * HQ + head) * HD + o_d, b_out.to(p_out.dtype.element_ty), mask=m_d)


def _case(HD: int, HQ: int, dependent: bool = False) -> CompileCase:
    types = {
        **dict.fromkeys(("p_highest", "p_weight", "p_sum"), "*fp32"),
        "p_chunks": "*i32",
        "p_out": "*bf16",
        "first_row": "i32",
        "C": "i32",
    }
    sizes = {"HD": HD, "BLOCK_D": block_of(HD), "HQ": HQ, "STEP": STEP, "BLOCK_C": 128, "DEPENDENT": dependent}
    least = 90 * dependent
    return CompileCase(_sum_chunks, types, sizes, num_warps=1, enable_fp_fusion=False, least_capability=least)


COMPILE_CASES = [_case(64, 9), _case(128, 32), _case(128, 32, dependent=True)]
