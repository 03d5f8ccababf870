"""The device's part of ``matmul.py`` and ``qkv.py``: what one program multiplies, leaves to others, adds up, writes."""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from redraft.kernels.dependent_launch import prefetch_device, wait_device
from redraft.kernels.heads_device import write_heads_device
from redraft.kernels.rms_norm import inverse_rms_device
from redraft.kernels.triton_support import jit, tl


@jit
def _load_rows(p_x, m_row, m_k, b_scale, p_norm, o_norm, NORM: tl.constexpr):
    """[ROWS, BLOCK_K] of ``x``, normed where asked for; what is masked is 0."""
    b_x = tl.load(p_x, mask=m_row[:, None] & m_k[None, :], other=0.0)
    if NORM:
        b_norm = tl.load(p_norm + o_norm, mask=m_k, other=0.0)
        b_x = (b_x.to(tl.float32) * b_scale[:, None] * b_norm[None, :]).to(b_x.dtype)
    return b_x


@jit
def _write_rows(
    b_y, b_up, p_bias, p_residual, p_y, row, R, n, N,
    GATED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Epilogue and store of the rows from ``row`` and the columns from ``n``: ``b_y``, ``b_up`` [ROWS, BLOCK_N]."""
    o_row, o_n = tl.arange(0, ROWS), tl.arange(0, BLOCK_N)
    m_n = o_n < N - n
    m_y = (o_row < R - row)[:, None] & m_n[None, :]
    o_y = row * N + n + o_row[:, None] * N + o_n[None, :]
    if BIAS:
        b_y += tl.load(p_bias + n + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
        if GATED:
            b_up += tl.load(p_bias + N + n + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    if GATED:
        # of a large gate's either sign the exponential is 0, never infinite
        b_e = tl.exp(-tl.abs(b_y))
        b_y = b_y * tl.where(b_y < 0, b_e, 1.0) / (1.0 + b_e) * b_up
    if RESIDUAL:
        b_y += tl.load(p_residual + o_y, mask=m_y, other=0.0).to(tl.float32)
    tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m_y)


@jit
def _write_part(p_part, b_sum, m_row, ROWS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Leave ``b_sum`` [ROWS, BLOCK_N] in the workspace, past the first cache, which multiprocessors do not share."""
    o_part = tl.arange(0, ROWS)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    tl.store(p_part + o_part, b_sum, mask=m_row[:, None], cache_modifier=".cg")


@jit
def _add_parts(p_part, stride, m_row, PARTS: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr):
    """The sum of all parts' sums, in order, from 0."""
    o_part = tl.arange(0, ROWS)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    b_sum = tl.zeros([ROWS, BLOCK_N], tl.float32)
    for i_part in range(PARTS):
        b_sum += tl.load(p_part + i_part * stride + o_part, mask=m_row[:, None], other=0.0, cache_modifier=".cg")
    return b_sum


@jit
def _write(
    b_y, b_up, p_bias, p_residual, p_y, p_cos, p_sin, p_qk_norm, p_position, p_cell, p_kv, row, R, n, N, cells, HQ, HKV,
    scale, eps, DTYPE: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    HALF: tl.constexpr, QK_NORM: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """What becomes of sums that are complete: rows of ``p_y``, or with ``HALF`` rotated heads."""
    if HALF:
        write_heads_device(
            b_y, b_up, p_bias, p_cos, p_sin, p_qk_norm, p_position, p_cell, p_y, p_kv, row, R, n, cells, HQ, HKV, scale,
            eps, DTYPE, BIAS, QK_NORM, HALF, ROWS, BLOCK_N,
        )  # fmt: skip
    else:
        _write_rows(b_y, b_up, p_bias, p_residual, p_y, row, R, n, N, GATED, BIAS, RESIDUAL, ROWS, BLOCK_N)


@jit
def _prefetch(p_columns, m_n, begin, end, K, BLOCK_N: tl.constexpr, LINES: tl.constexpr, LINE: tl.constexpr):
    """Of ``BLOCK_N`` columns' weights the first ``LINES`` lines from ``begin`` on, those before ``end``."""
    o_k = begin + tl.arange(0, LINES) * LINE
    p_lines = p_columns + (tl.arange(0, BLOCK_N) * K)[:, None] + o_k[None, :]
    # what is not there is asked for in its neighbour's place
    prefetch_device(tl.where(m_n[:, None] & (o_k < end)[None, :], p_lines, p_columns))


# a row count of 1, or of 16, would be compiled apart
@jit(do_not_specialize=["R"])
def product(
    p_x, p_weight, p_norm, p_bias, p_residual, p_y, p_part, p_ticket,
    p_cos, p_sin, p_qk_norm, p_position, p_cell, p_kv, R, N, K, part, eps, cells, HQ, HKV, scale,
    NORM: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, HALF: tl.constexpr,
    QK_NORM: tl.constexpr, EVEN: tl.constexpr, PARTS: tl.constexpr, TICKET: tl.constexpr, TILES: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One program per block of columns and (group of rows, or part of K with ``TICKET``).

    ``p_x`` [R, K], ``p_weight`` [N or 2 N, K], ``p_norm`` [K] fp32, ``p_bias`` [N or 2 N], ``p_residual``, ``p_y``
    [R, N], ``p_part`` fp32 and ``p_ticket`` int32: the workspace.  ``EVEN``: K is a multiple of ``BLOCK_K``.

    ``GATED`` makes two columns at a time, N apart.  So does ``HALF`` > 0, that many apart within each head of 2
    ``HALF`` columns, for ``write_heads_device``, which takes the other arguments; N is then half of the columns and
    ``p_y`` the queries.
    """
    # programs that read the same weights, or whose sums are added up, are neighbours
    i_first, i_block = tl.program_id(0), tl.program_id(1)
    row = tl.full([], 0, tl.int64) if TICKET else (i_first * (TILES * ROWS)).to(tl.int64)
    PAIRED: tl.constexpr = GATED or HALF > 0
    n = i_block.to(tl.int64) * BLOCK_N
    up = tl.full([], 1, tl.int64) * N * K
    m_n = tl.arange(0, BLOCK_N) < N - n
    if HALF:
        # n runs over the first halves of heads
        n += n // HALF * HALF
        up = tl.full([], HALF, tl.int64) * K
    o_row, o_n, o_k = tl.arange(0, ROWS), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    if DEPENDENT:
        LINE: tl.constexpr = 1024 // p_weight.dtype.element_ty.primitive_bitwidth
        first = i_first * part if TICKET else 0
        last = tl.minimum(first + part, K)
        _prefetch(p_weight + n * K, m_n, first, last, K, BLOCK_N, 8, LINE)
        if PAIRED:
            _prefetch(p_weight + n * K + up, m_n, first, last, K, BLOCK_N, 8, LINE)
    wait_device(DEPENDENT)
    m_row0, m_row1 = o_row < R - row, o_row < R - row - ROWS
    # a row offset is below ROWS * K: 32 bits do, once the base has 64
    DTYPE: tl.constexpr = p_x.dtype.element_ty
    p_x0 = p_x + row * K
    p_x1 = p_x0 + ROWS * K
    b_scale0 = o_row.to(tl.float32)
    b_scale1 = b_scale0
    if NORM:
        b_scale0 = inverse_rms_device(p_x0, m_row0, K, eps, ROWS)
        if TILES > 1:
            b_scale1 = inverse_rms_device(p_x1, m_row1, K, eps, ROWS)
    p_rows0 = p_x0 + o_row[:, None] * K + o_k[None, :]
    p_rows1 = p_x1 + o_row[:, None] * K + o_k[None, :]
    p_columns = p_weight + n * K + o_n[None, :] * K + o_k[:, None]
    b_none = tl.zeros([ROWS, BLOCK_N], tl.float32)
    b_y0, b_y1, b_up0, b_up1 = b_none, b_none, b_none, b_none
    for i_turn in range(1 if TICKET else PARTS):
        begin = (i_first if TICKET else i_turn) * part
        b_sum0, b_sum1, b_more0, b_more1 = b_none, b_none, b_none, b_none
        for k in range(begin, tl.minimum(begin + part, K), BLOCK_K):
            m_k = o_k < BLOCK_K if EVEN else o_k < K - k
            m_w = m_k[:, None] & m_n[None, :]
            b_w = tl.load(p_columns + k, mask=m_w, other=0.0)
            b_x0 = _load_rows(p_rows0 + k, m_row0, m_k, b_scale0, p_norm, k + o_k, NORM)
            b_sum0 = tl.dot(b_x0, b_w, b_sum0, input_precision="ieee")
            if TILES > 1:
                b_x1 = _load_rows(p_rows1 + k, m_row1, m_k, b_scale1, p_norm, k + o_k, NORM)
                b_sum1 = tl.dot(b_x1, b_w, b_sum1, input_precision="ieee")
            if PAIRED:
                b_v = tl.load(p_columns + up + k, mask=m_w, other=0.0)
                b_more0 = tl.dot(b_x0, b_v, b_more0, input_precision="ieee")
                if TILES > 1:
                    b_more1 = tl.dot(b_x1, b_v, b_more1, input_precision="ieee")
        b_y0 += b_sum0
        b_y1 += b_sum1
        b_up0 += b_more0
        b_up1 += b_more1
    if TICKET:
        TILE: tl.constexpr = ROWS * BLOCK_N
        block = TILE * TILES * (1 + PAIRED)
        stride = tl.num_programs(1) * block
        p_block = p_part + i_block * block
        p_mine = p_block + i_first * stride
        _write_part(p_mine, b_y0, m_row0, ROWS, BLOCK_N)
        if TILES > 1:
            _write_part(p_mine + TILE, b_y1, m_row1, ROWS, BLOCK_N)
        if PAIRED:
            _write_part(p_mine + TILES * TILE, b_up0, m_row0, ROWS, BLOCK_N)
            if TILES > 1:
                _write_part(p_mine + (TILES + 1) * TILE, b_up1, m_row1, ROWS, BLOCK_N)
        # all threads' stores come before the one thread's release, and its acquire before all threads' loads
        tl.debug_barrier()
        if tl.atomic_add(p_ticket + i_block, 1, sem="acq_rel", scope="gpu") == PARTS - 1:
            tl.store(p_ticket + i_block, 0)
            b_y0 = _add_parts(p_block, stride, m_row0, PARTS, ROWS, BLOCK_N)
            if PAIRED:
                b_up0 = _add_parts(p_block + TILES * TILE, stride, m_row0, PARTS, ROWS, BLOCK_N)
            _write(
                b_y0, b_up0, p_bias, p_residual, p_y, p_cos, p_sin, p_qk_norm, p_position, p_cell, p_kv, row, R, n, N,
                cells, HQ, HKV, scale, eps, DTYPE, GATED, BIAS, RESIDUAL, HALF, QK_NORM, ROWS, BLOCK_N,
            )  # fmt: skip
            if TILES > 1:
                b_y1 = _add_parts(p_block + TILE, stride, m_row1, PARTS, ROWS, BLOCK_N)
                if PAIRED:
                    b_up1 = _add_parts(p_block + (TILES + 1) * TILE, stride, m_row1, PARTS, ROWS, BLOCK_N)
                _write(
                    b_y1, b_up1, p_bias, p_residual, p_y, p_cos, p_sin, p_qk_norm, p_position, p_cell, p_kv, row + ROWS,
                    R, n, N, cells, HQ, HKV, scale, eps, DTYPE, GATED, BIAS, RESIDUAL, HALF, QK_NORM, ROWS, BLOCK_N,
                )  # fmt: skip
    else:
        _write(
            b_y0, b_up0, p_bias, p_residual, p_y, p_cos, p_sin, p_qk_norm, p_position, p_cell, p_kv, row, R, n, N,
            cells, HQ, HKV, scale, eps, DTYPE, GATED, BIAS, RESIDUAL, HALF, QK_NORM, ROWS, BLOCK_N,
        )  # fmt: skip
        if TILES > 1:
            _write(
                b_y1, b_up1, p_bias, p_residual, p_y, p_cos, p_sin, p_qk_norm, p_position, p_cell, p_kv, row + ROWS,
                R, n, N, cells, HQ, HKV, scale, eps, DTYPE, GATED, BIAS, RESIDUAL, HALF, QK_NORM, ROWS, BLOCK_N,
            )  # fmt: skip
