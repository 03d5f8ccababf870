"""Between projections and attention: norms of queries and keys, rotation, keys and values to their cells, one launch.

``layer_torch.TorchOps.rope_and_cache`` is the twin.  A program has a few heads of one row, whatever rows there are.
"""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
from torch import Tensor

from redraft.kernels.triton_support import CompileCase, check_tensor, jit, next_power_of_2, tl

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_HEADS = 8
"""Heads of a program: 1,024 numbers of size 128, one vector of 8 for each of 128 threads."""


@jit
def _rope_cache(
    p_qkv, p_cos, p_sin, p_norm, p_position, p_cell, p_q, p_kv, stride, layer_stride, cells, HQ, HKV, scale, eps,
    NORM: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row, ``HEADS`` heads and layer; a head's halves [HEADS, BLOCK] are held apart.

    ``p_qkv`` [R, L, HQ + 2 HKV, 2 HALF], rows ``stride`` and layers ``layer_stride`` apart; ``p_cos``, ``p_sin``
    [positions, 2 HALF] with ``rotate_half``'s sign; ``p_norm`` [L, HQ + HKV, 2 HALF]; ``p_q`` [R, HQ, 2 HALF] of one
    layer; ``p_kv`` [L, 2, cells, HKV, 2 HALF].
    """
    i_row = tl.program_id(0).to(tl.int64)
    i_layer = tl.program_id(2)
    p_qkv += i_layer * layer_stride
    p_kv += i_layer.to(tl.int64) * cells * HKV * (4 * HALF)
    if NORM:
        p_norm += i_layer * (HQ + HKV) * (2 * HALF)
    o_head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    o_dim = tl.arange(0, BLOCK)
    o_in = o_head[:, None] * (2 * HALF) + o_dim[None, :]
    m_dim = (o_dim < HALF)[None, :]
    m_turned = (o_head < HQ + HKV)[:, None] & m_dim
    m_any = (o_head < HQ + 2 * HKV)[:, None] & m_dim
    p_row = p_qkv + i_row * stride + o_in
    b_low = tl.load(p_row, mask=m_any, other=0.0).to(tl.float32)
    b_high = tl.load(p_row + HALF, mask=m_any, other=0.0).to(tl.float32)
    b_turned_low, b_turned_high = b_low, b_high
    if NORM:
        b_square = tl.sum(b_low * b_low + b_high * b_high, 1)
        b_inverse = tl.rsqrt(b_square / (2 * HALF) + eps)[:, None]
        b_turned_low = b_low * b_inverse * tl.load(p_norm + o_in, mask=m_turned, other=0.0)
        b_turned_high = b_high * b_inverse * tl.load(p_norm + o_in + HALF, mask=m_turned, other=0.0)
    o_angle = tl.load(p_position + i_row) * (2 * HALF) + o_dim
    m_angle = o_dim < HALF
    b_cos_low = tl.load(p_cos + o_angle, mask=m_angle, other=0.0)[None, :]
    b_cos_high = tl.load(p_cos + o_angle + HALF, mask=m_angle, other=0.0)[None, :]
    b_sin_low = tl.load(p_sin + o_angle, mask=m_angle, other=0.0)[None, :]
    b_sin_high = tl.load(p_sin + o_angle + HALF, mask=m_angle, other=0.0)[None, :]
    b_new_low = b_turned_low * b_cos_low + b_turned_high * b_sin_low
    b_new_high = b_turned_high * b_cos_high + b_turned_low * b_sin_high
    m_query = (o_head < HQ)[:, None] & m_dim
    p_out = p_q + i_row * HQ * (2 * HALF) + o_in
    tl.store(p_out, b_new_low * scale, mask=m_query)
    tl.store(p_out + HALF, b_new_high * scale, mask=m_query)
    # keys' and values' heads follow the queries'; a value's place is a whole plane further
    is_value = o_head >= HQ + HKV
    cell = tl.load(p_cell + i_row)
    o_head_kv = tl.where(is_value, o_head - HQ - HKV, o_head - HQ)
    o_plane = tl.where(is_value, cells.to(tl.int64), 0) + cell
    p_to = p_kv + ((o_plane * HKV + o_head_kv) * (2 * HALF))[:, None] + o_dim[None, :]
    m_kv = m_any & (o_head >= HQ)[:, None]
    b_kv_low = tl.where(is_value[:, None], b_low, b_new_low)
    b_kv_high = tl.where(is_value[:, None], b_high, b_new_high)
    tl.store(p_to, b_kv_low.to(p_kv.dtype.element_ty), mask=m_kv)
    tl.store(p_to + HALF, b_kv_high.to(p_kv.dtype.element_ty), mask=m_kv)


def check_heads(
    rows: int,
    width: int,
    cos: Tensor,
    sin: Tensor,
    qk_norm: Tensor | None,
    position: Tensor,
    cell: Tensor,
    kv: Tensor,
    heads: int,
) -> tuple[int, int]:
    """HKV and HD; ``ValueError`` unless the arguments fit one another and ``rows`` projections of ``width``."""
    check_tensor("kv", kv, 4, *DTYPES)
    _, _, kv_heads, dim = kv.shape
    turned = heads + kv_heads
    if width != (turned + kv_heads) * dim:
        raise ValueError(f"projections must be {(turned + kv_heads) * dim} wide, but are {width}")
    for name, table in (("cos", cos), ("sin", sin)):
        check_tensor(name, table, 3, torch.float32, like=kv)
        if table.shape[1:] != (1, dim) or dim % 2:
            raise ValueError(f"{name} must be [positions, 1, {dim}] with an even head size, but is {list(table.shape)}")
    for name, number in (("position", position), ("cell", cell)):
        check_tensor(name, number, 1, torch.int64, like=kv)
        if number.shape[0] != rows:
            raise ValueError(f"{name} must have {rows} rows, but has {number.shape[0]}")
    if qk_norm is not None:
        check_tensor("qk_norm", qk_norm, 2, torch.float32, like=kv)
        if qk_norm.shape != (turned, dim):
            raise ValueError(f"qk_norm must be {[turned, dim]}, but is {list(qk_norm.shape)}")
    return kv_heads, dim


def rope_cache_kernel(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    qk_norm: Tensor | None,
    position: Tensor,
    cell: Tensor,
    kv: Tensor,
    heads: int,
    eps: float,
) -> Tensor:
    """Rotate ``qkv``'s queries and keys to ``position``, write keys and values to ``cell``, return the queries.

    Of several layers without queries at once: ``qkv`` [R, L, 2 HKV HD], ``qk_norm`` [L, HKV, HD], ``kv`` [L, 2, ...].

    Args:
        qkv: [R, (HQ + 2 HKV) HD] bf16, fp16 or fp32; rows may lie apart, as in a part of wider rows.
        cos, sin: [positions, 1, HD] fp32 of ``rope.rope_table``.
        qk_norm: [HQ + HKV, HD] fp32 weight of the heads' norms, or None for none.
        position, cell: [R] int64; rows that share a cell (padding's) leave one of their number in it.
        kv: [2, cells, HKV, HD] bf16, fp16 or fp32.
        heads: HQ, 0 for keys and values alone.
        eps: the norms'.

    Returns [R, HQ, HD] fp32, times 1 / sqrt(HD).  Raises ``ValueError`` for arguments that do not fit one another.
    """
    R, layers = qkv.shape[0], 1
    one_norm, one_kv = qk_norm, kv
    if qkv.dim() == 3:
        layers = qkv.shape[1]
        if (
            heads
            or kv.dim() != 5
            or len(kv) != layers
            or not layers
            or (qk_norm is not None and len(qk_norm) != layers)
        ):
            raise ValueError(
                f"keys and values of {layers} layers go, without queries, to as many, not to {list(kv.shape)}"
            )
        check_tensor("kv", kv, 5, *DTYPES)
        one_norm, one_kv = None if qk_norm is None else qk_norm[0], kv[0]
    if qkv.dim() not in (2, 3) or qkv.stride(-1) != 1 or qkv.dtype not in DTYPES:
        raise ValueError(
            f"qkv must be rows in one piece each, but is {qkv.dtype} {list(qkv.shape)} "
            f"with strides {list(qkv.stride())}"
        )
    kv_heads, dim = check_heads(R, qkv.shape[-1], cos, sin, one_norm, position, cell, one_kv, heads)
    q = torch.empty(R, heads, dim, device=qkv.device)
    if R:
        half = dim // 2
        _rope_cache[(R, -(-(heads + 2 * kv_heads) // _HEADS), layers)](
            qkv,
            cos,
            sin,
            qk_norm,
            position,
            cell,
            q,
            kv,
            qkv.stride(0),
            qkv.stride(1) if qkv.dim() == 3 else 0,
            one_kv.shape[1],
            heads,
            kv_heads,
            dim**-0.5,
            eps,
            NORM=qk_norm is not None,
            HEADS=_HEADS,
            HALF=half,
            BLOCK=next_power_of_2(half),
        )
    return q


COMPILE_CASES = tuple(
    CompileCase(
        _rope_cache,
        {
            "p_qkv": dtype,
            "p_cos": "*fp32",
            "p_sin": "*fp32",
            "p_norm": "*fp32",
            "p_position": "*i64",
            "p_cell": "*i64",
            "p_q": "*fp32",
            "p_kv": dtype,
            "stride": "i32",
            "layer_stride": "i32",
            "cells": "i32",
            "HQ": "i32",
            "HKV": "i32",
            "scale": "fp32",
            "eps": "fp32",
        },
        {"NORM": norm, "HEADS": _HEADS, "HALF": half, "BLOCK": half} | ({} if norm else {"p_norm": None}),
        divisible=("stride", "layer_stride", "cells"),
    )
    for dtype, norm, half in (("*bf16", False, 32), ("*fp32", True, 64))
)
