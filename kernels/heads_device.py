"""The device's part of ``qkv.py``: what becomes of a head on its way from projection to attention.

A head is held as its two halves, which rotation brings together.  The squares of its norm are added up in a tree that
is written out: a reduction would go by the layout of what it reduces, and that differs with the rows of a pass.
"""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from redraft.kernels.triton_support import jit, tl


@jit
def sum_columns_device(b, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr):
    """Sums of ``b`` [ROWS, COLUMNS] over its 2 ** ``STEPS`` columns: neighbours first, then neighbouring sums."""
    for i_step in tl.static_range(STEPS):
        b_left, b_right = tl.split(tl.reshape(b, [ROWS, COLUMNS >> (i_step + 1), 2]))
        b = b_left + b_right
    return tl.reshape(b, [ROWS])


@jit
def write_heads_device(
    b_low, b_high, p_bias, p_cos, p_sin, p_qk_norm, p_position, p_cell, p_q, p_kv, row, R, n, cells, HQ, HKV, scale,
    eps, DTYPE: tl.constexpr, BIAS: tl.constexpr, QK_NORM: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Part of one head of the rows from ``row``: ``b_low``, ``b_high`` [ROWS, BLOCK_N] fp32 of each half.

    They are the projections' columns from ``n`` and from ``n + HALF``, and are rounded to ``DTYPE`` first, as those of
    a product of its own would be.  The other arguments are ``rope_cache.py``'s.  ``QK_NORM`` takes whole halves.
    """
    tl.static_assert(not QK_NORM or BLOCK_N == HALF)
    o_row, o_n = tl.arange(0, ROWS), tl.arange(0, BLOCK_N)
    m_row = o_row < R - row
    head = n // (2 * HALF)
    o_in = n % (2 * HALF) + o_n
    if BIAS:
        b_low += tl.load(p_bias + n + o_n).to(tl.float32)[None, :]
        b_high += tl.load(p_bias + n + HALF + o_n).to(tl.float32)[None, :]
    b_low, b_high = b_low.to(DTYPE).to(tl.float32), b_high.to(DTYPE).to(tl.float32)
    if head < HQ + HKV:
        if QK_NORM:
            STEPS: tl.constexpr = 3 + (HALF > 8) + (HALF > 16) + (HALF > 32) + (HALF > 64)
            b_square = sum_columns_device(b_low * b_low + b_high * b_high, ROWS, HALF, STEPS)
            b_inverse = tl.rsqrt(b_square / (2 * HALF) + eps)[:, None]
            b_low = b_low * b_inverse * tl.load(p_qk_norm + head * (2 * HALF) + o_in)[None, :]
            b_high = b_high * b_inverse * tl.load(p_qk_norm + head * (2 * HALF) + HALF + o_in)[None, :]
        # the halves of the tables are alike but for the sine's sign
        b_position = tl.load(p_position + row + o_row, mask=m_row, other=0)
        o_angle = (b_position * (2 * HALF) + HALF)[:, None] + o_in[None, :]
        b_cos, b_sin = tl.load(p_cos + o_angle), tl.load(p_sin + o_angle)
        b_turned = b_low * b_cos - b_high * b_sin
        b_high = b_high * b_cos + b_low * b_sin
        b_low = b_turned
    if head < HQ:
        p_query = p_q + (((row + o_row) * HQ + head) * (2 * HALF))[:, None] + o_in[None, :]
        tl.store(p_query, b_low * scale, mask=m_row[:, None])
        tl.store(p_query + HALF, b_high * scale, mask=m_row[:, None])
    else:
        # values lie a whole plane behind keys
        b_cell = tl.load(p_cell + row + o_row, mask=m_row, other=0) + (head - HQ) // HKV * cells
        p_cached = p_kv + ((b_cell * HKV + (head - HQ) % HKV) * (2 * HALF))[:, None] + o_in[None, :]
        tl.store(p_cached, b_low.to(p_kv.dtype.element_ty), mask=m_row[:, None])
        tl.store(p_cached + HALF, b_high.to(p_kv.dtype.element_ty), mask=m_row[:, None])
