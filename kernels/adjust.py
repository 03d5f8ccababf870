"""What a request asks of the logits before temperature: penalties, bias, min_tokens, a grammar's mask, in this order.

Every row of a tree is adjusted as plain decoding would adjust it had the row's path been committed: penalties count the
slot's text *plus the row's own ancestors and itself*.  All of it is elementwise, or writes to places that are the same
whoever stands beside the row, so a row's bits depend on the row alone; nothing adds floats by atomics.

The order within a row (docs/structure.md): repetition penalty, frequency and presence penalty, bias, end tokens masked
while fewer than min_tokens were produced, tokens that a grammar forbids masked.  Temperature and filters come after
(sample.py).  What a neutral value leaves alone keeps its bits: x / 1, x - 0 and x + 0 are x.

On a GPU one kernel makes the penalties and the mask in one pass over the logits, as compiled code does on a CPU
(adjust_cpu.c); bias and end tokens are few places and stay torch's gather and scatter.  The mask may come first there:
what it forbids is −∞ and stays so under any bias.
"""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.kernels.accept import Committed
from redraft.kernels.rows import Rows
from redraft.kernels.triton_support import CompileCase, check_tensor, jit, tl, use_triton
from redraft.kernels.vocab_cpu import adjusted_rows, is_compiled_for

PRODUCED = 2
"""What one produced token adds to ``Penalties.count``; the lowest bit says that the token is in the prompt."""

CHUNK = 64
"""Rows at a time where whole rows are held beside the logits, which bounds the memory for them."""


@dataclass(frozen=True, slots=True)
class Penalties:
    """Penalties of every slot and what they count.  The last slot, that of padding rows, is neutral."""

    presence: Tensor
    """[S+1] fp32, taken once from the logit of every token produced before; 0 is off."""
    frequency: Tensor
    """[S+1] fp32, taken from it for every time it was produced; 0 is off."""
    repetition: Tensor
    """[S+1] fp32, divides positive logits of every token of prompt or output and multiplies others; 1 is off."""
    count: Tensor
    """[S+1, V] int32: ``PRODUCED`` times how often a token was produced, plus 1 if it is in the prompt."""


@dataclass(frozen=True, slots=True)
class Bias:
    """What is added to single logits.  A slot's unused places repeat its first one; without any, all are (0, 0.0)."""

    token: Tensor
    """[S+1, B] int64."""
    value: Tensor
    """[S+1, B] fp32."""


@dataclass(frozen=True, slots=True)
class MinTokens:
    """End tokens that may not come yet."""

    until: Tensor
    """[S+1] int64, the length of prompt and output from which on an end token may follow; 0 is off."""
    ends: Tensor
    """[S+1, E] int64, the slot's end tokens, real ones first, -1 where there are none."""


def adjust(
    logits: Tensor,
    rows: Rows,
    *,
    penalties: Penalties | None = None,
    bias: Bias | None = None,
    minimum: MinTokens | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """The logits that sampling sees, ``[R, V]`` fp32, a new tensor.

    ``logits [R, V]`` fp32 or bf16; ``rows`` the round's R rows.  ``allowed`` [R, ceil(V / 32)] int32 has bit v % 32 of
    word v // 32 set where token v may come.  What is None is no part of the round: the host knows that without asking
    the device.  Raises ``ValueError`` for a mask of another shape or type.
    """
    if allowed is not None:
        R, V = logits.shape
        if allowed.dtype != torch.int32 or allowed.shape != (R, -(-V // 32)):
            raise ValueError(
                f"allowed must be int32 of shape {[R, -(-V // 32)]}, but is {allowed.dtype} {list(allowed.shape)}"
            )
    if is_compiled_for(logits) and (penalties is not None or allowed is not None):
        p = penalties
        tables = None if p is None else (p.repetition, p.frequency, p.presence, p.count)
        z = adjusted_rows(logits, rows, tables, allowed)
        _place(z, rows, bias, minimum)
        return z
    op = adjust_kernel if use_triton(logits) else adjust_twin
    return op(logits, rows, penalties=penalties, bias=bias, minimum=minimum, allowed=allowed)


def adjust_twin(
    logits: Tensor,
    rows: Rows,
    *,
    penalties: Penalties | None = None,
    bias: Bias | None = None,
    minimum: MinTokens | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """``adjust`` in plain torch, of fixed shapes, some rows at a time."""
    z = logits.to(torch.float32, copy=True)
    if penalties is not None:
        _penalise(z, rows, penalties)
    _place(z, rows, bias, minimum)
    if allowed is not None:
        ids = torch.arange(z.shape[1], device=z.device)
        word, bit = ids >> 5, ids.to(torch.int32) & 31
        for part, words in zip(_parts(z), _parts(allowed), strict=True):
            allowed_here = words.index_select(1, word).bitwise_right_shift_(bit).bitwise_and_(1)
            part.masked_fill_(allowed_here == 0, float("-inf"))
    return z


def _parts(rows: Tensor) -> list[Tensor]:
    return [rows[start : start + CHUNK] for start in range(0, rows.shape[0], CHUNK)]


def _place(z: Tensor, rows: Rows, bias: Bias | None, minimum: MinTokens | None) -> None:
    """Bias, and end tokens that may not come yet, in place."""
    if bias is not None:
        token = bias.token[rows.slot]
        # repeated places write the same value, so their order is nothing
        z.scatter_(1, token, z.gather(1, token) + bias.value[rows.slot])
    if minimum is not None:
        early = rows.position + 1 < minimum.until[rows.slot]
        ends = minimum.ends[rows.slot]
        masked = (ends[:, :1] >= 0).logical_and_(early.unsqueeze(1))
        token = torch.where(ends >= 0, ends, ends[:, :1]).clamp_(min=0)
        z.scatter_(1, token, z.gather(1, token).masked_fill_(masked, float("-inf")))


def _penalise(z: Tensor, rows: Rows, penalties: Penalties) -> None:
    """Penalties on ``z`` [R, V], in place."""
    # the root is committed text already; a padding row's slot may begin behind the last row
    path = rows.path[:, 1:]
    above = (rows.first_row[rows.slot].unsqueeze(1) + path.clamp(min=0)).clamp_(max=z.shape[0] - 1)
    token, added = rows.token[above], (path >= 0).to(torch.int32).mul_(PRODUCED)
    each = map(_parts, (z, rows.slot, token, added))
    for part, slot, token_here, added_here in zip(*each, strict=True):
        count = penalties.count[slot].scatter_add_(1, token_here, added_here)
        repetition, frequency, presence = (
            table[slot].unsqueeze(1) for table in (penalties.repetition, penalties.frequency, penalties.presence)
        )
        repeated = torch.where(part > 0, part / repetition, part * repetition)
        part.copy_(torch.where(count > 0, repeated, part))
        produced = count.bitwise_right_shift_(1)
        part.sub_(frequency * produced).sub_(presence * (produced > 0))


@jit
def adjust_rows_kernel(
    p_logits,
    p_slot,
    p_depth,
    p_path,
    p_token,
    p_first_row,
    p_presence,
    p_frequency,
    p_repetition,
    p_count,
    p_allowed,
    p_z,
    V,
    W,
    WORDS,
    PENALISED: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row and block of tokens: ``p_logits [R, V]`` → ``p_z [R, V]`` fp32."""
    i_row = tl.program_id(0).to(tl.int64)
    o_id = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_id = o_id < V
    b_z = tl.load(p_logits + i_row * V + o_id, mask=m_id, other=0.0).to(tl.float32)
    if PENALISED:
        slot = tl.load(p_slot + i_row)
        first = tl.load(p_first_row + slot)
        b_count = tl.load(p_count + slot * V + o_id, mask=m_id, other=0)
        for depth in range(1, tl.load(p_depth + i_row).to(tl.int32) + 1):
            token = tl.load(p_token + first + tl.load(p_path + i_row * W + depth))
            b_count += tl.where(o_id == token, 2, 0)
        repetition = tl.load(p_repetition + slot)
        b_repeated = tl.where(b_z > 0, tl.div_rn(b_z, tl.zeros_like(b_z) + repetition), b_z * repetition)
        b_z = tl.where(b_count > 0, b_repeated, b_z)
        b_produced = b_count >> 1
        b_z = b_z - tl.load(p_frequency + slot) * b_produced.to(tl.float32)
        b_z = b_z - tl.load(p_presence + slot) * tl.where(b_produced > 0, 1.0, 0.0)
    if MASKED:
        b_word = tl.load(p_allowed + i_row * WORDS + (o_id >> 5), mask=m_id, other=0)
        b_z = tl.where(((b_word >> (o_id & 31)) & 1) != 0, b_z, float("-inf"))
    tl.store(p_z + i_row * V + o_id, b_z, mask=m_id)


def adjust_kernel(
    logits: Tensor,
    rows: Rows,
    *,
    penalties: Penalties | None = None,
    bias: Bias | None = None,
    minimum: MinTokens | None = None,
    allowed: Tensor | None = None,
    block: int = 1024,
) -> Tensor:
    """``adjust`` in Triton; ``block`` is the tokens of a program, a power of two."""
    check_tensor("logits", logits, 2, torch.float32, torch.bfloat16, torch.float16)
    R, V = logits.shape
    z = torch.empty(R, V, dtype=torch.float32, device=logits.device)
    for name in ("slot", "depth", "token", "first_row"):
        check_tensor(f"rows.{name}", getattr(rows, name), 1, torch.int64, like=logits)
    check_tensor("rows.path", rows.path, 2, torch.int64, like=logits)
    unused = rows.slot
    tables = (unused,) * 4
    if penalties is not None:
        tables = (penalties.presence, penalties.frequency, penalties.repetition, penalties.count)
        for name, table in zip(("presence", "frequency", "repetition"), tables, strict=False):
            check_tensor(f"penalties.{name}", table, 1, torch.float32, like=logits)
        check_tensor("penalties.count", penalties.count, 2, torch.int32, like=logits)
    if allowed is not None:
        check_tensor("allowed", allowed, 2, torch.int32, like=logits)
    if penalties is None and allowed is None:
        z.copy_(logits)
    elif R:
        adjust_rows_kernel[(R, -(-V // block))](
            logits,
            rows.slot,
            rows.depth,
            rows.path,
            rows.token,
            rows.first_row,
            *tables,
            unused if allowed is None else allowed,
            z,
            V,
            rows.path.shape[1],
            -(-V // 32),
            PENALISED=penalties is not None,
            MASKED=allowed is not None,
            BLOCK=block,
            num_warps=4,
            enable_fp_fusion=False,
        )
    _place(z, rows, bias, minimum)
    return z


def count_committed(penalties: Penalties, committed: Committed) -> None:
    """Enter what a round committed, for all slots, into ``penalties.count``."""
    real = committed.tokens >= 0
    penalties.count.scatter_add_(1, committed.tokens.clamp(min=0), real.to(torch.int32).mul_(PRODUCED))


_TYPES = {
    **{f"p_{name}": "*i64" for name in ("slot", "depth", "path", "token", "first_row")},
    **{f"p_{name}": "*fp32" for name in ("presence", "frequency", "repetition")},
    "p_count": "*i32",
    "p_allowed": "*i32",
    "p_z": "*fp32",
    **dict.fromkeys(("V", "W", "WORDS"), "i32"),
}
COMPILE_CASES = tuple(
    CompileCase(
        adjust_rows_kernel,
        {"p_logits": dtype, **_TYPES},
        {"PENALISED": penalised, "MASKED": masked, "BLOCK": 1024},
        enable_fp_fusion=False,
    )
    for dtype, penalised, masked in (("*bf16", True, True), ("*bf16", True, False), ("*fp32", False, True))
)
