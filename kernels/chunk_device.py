"""The device's part of ``chunk_attention.py``: what a program computes of an item, and adds up where it came last."""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from redraft.kernels.attention_partial import add_tile
from redraft.kernels.dependent_launch import wait_device
from redraft.kernels.triton_support import jit, tl


@jit
def _entry(p_item, item, item_stride, CAPACITY):
    """Fields of an item; of none where there is no room for one."""
    p_field = p_item + item
    room = item < CAPACITY
    row = tl.load(p_field, mask=room, other=0)
    end = tl.load(p_field + item_stride, mask=room, other=0)
    chunk = tl.load(p_field + 2 * item_stride, mask=room, other=0)
    page = tl.load(p_field + 3 * item_stride, mask=room, other=0)
    seen = tl.load(p_field + 4 * item_stride, mask=room, other=0)
    return row, end, chunk, page, seen


@jit
def _queries(
    p_q, p_upto, p_position, row, start, width, kv_head, q_stride,
    G: tl.constexpr, HD: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of an item's rows and heads: queries, positions, and how many chunks have their cells in order."""
    o_flat = start + tl.arange(0, TILE)
    o_d = tl.arange(0, BLOCK_D)
    b_row = row + o_flat // G
    m_row = o_flat < width
    b_head = kv_head * G + o_flat % G
    p_from = p_q + b_row.to(tl.int64)[:, None] * q_stride + b_head[:, None] * HD + o_d[None, :]
    b_q = tl.load(p_from, mask=m_row[:, None] & (o_d < HD)[None, :], other=0.0)
    b_position = tl.load(p_position + b_row, mask=m_row, other=-1)
    b_upto = tl.load(p_upto + b_row, mask=m_row, other=-1)
    return b_q, b_position, b_upto


@jit
def _write_zeros(p_out, p_row, first_row, SLAB, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of padding are in no item.  Programs deal them out from the last on, which has the least to do."""
    o_out = tl.arange(0, BLOCK)
    b_zero = tl.zeros([BLOCK], p_out.dtype.element_ty)
    for i_row in range(tl.num_programs(0) - 1 - tl.program_id(0), SLAB, tl.num_programs(0)):
        if tl.load(p_row + first_row + i_row) == 0:
            p_to = p_out + (first_row + i_row).to(tl.int64) * WIDTH + o_out
            for start in range(0, WIDTH, BLOCK):
                tl.store(p_to + start, b_zero, mask=start + o_out < WIDTH)


@jit
def _draw(p_ticket, m_row, b_chunks, o_row):
    """Draw for each row of an item; the rows that this was the last chunk of, a bit each, their tickets back at 0.

    ``o_row`` is as long as the program has threads: each of 64 draws one, all at the same time.
    """
    # all threads' stores come before the release of those that draw, and their acquire before all threads' loads: the
    # sum over threads waits for every one
    tl.debug_barrier()
    b_drawn = tl.atomic_add(p_ticket, 1, mask=m_row, sem="acq_rel", scope="gpu")
    m_last = m_row & (b_drawn == b_chunks - 1)
    tl.store(p_ticket, 0, mask=m_last)
    b_bit = tl.full(o_row.shape, 1, tl.int64) << (o_row & 63)
    return tl.sum(tl.where(m_last, b_bit, 0), 0)


@jit
def _merge(
    p_highest, p_weight, p_sum, p_out, p_row, last, row, first_row, width, kv_head, C,
    HKV: tl.constexpr, G: tl.constexpr, HD: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """Add up and write the item's rows in ``last``, tile by tile."""
    o_d = tl.arange(0, BLOCK_D)
    for start in range(0, width, TILE):
        o_flat = start + tl.arange(0, TILE)
        o_row = o_flat // G
        m_last = (o_flat < width) & (((last >> tl.minimum(o_row, 63)) & 1) != 0)
        b_chunks = tl.load(p_row + row + o_row, mask=m_last, other=0)
        b_head = kv_head * G + o_flat % G
        b_from = ((row - first_row + o_row).to(tl.int64) * (HKV * G) + b_head) * C
        b_out = add_tile(p_highest, p_weight, p_sum, b_from, b_chunks, HD, BLOCK_D, TILE, STEP)
        b_to = ((row + o_row).to(tl.int64) * (HKV * G) + b_head) * HD
        m_out = m_last[:, None] & (o_d < HD)[None, :]
        tl.store(p_out + b_to[:, None] + o_d[None, :], b_out.to(p_out.dtype.element_ty), mask=m_out)


@jit(
    do_not_specialize=["first_row", "item_stride", "CAPACITY", "R", "C", "W", "P", "FIRST", "SLAB"],
    do_not_specialize_on_alignment=["p_item", "p_total", "p_highest", "p_weight"],
)
def chunks_of_items(
    p_q, p_key, p_value, p_item, p_total, p_row, p_position, p_depth, p_slot, p_path, p_page_table,
    p_highest, p_weight, p_sum, p_out, p_ticket,
    first_row, q_stride, item_stride, CAPACITY, R, C, W, P, FIRST, SLAB,
    HKV: tl.constexpr, G: tl.constexpr, HD: tl.constexpr, BLOCK_D: tl.constexpr,
    LANES: tl.constexpr, PAGE_SIZE: tl.constexpr, TILE: tl.constexpr, EXPONENT: tl.constexpr,
    MERGE: tl.constexpr, STEP: tl.constexpr, THREADS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Every program takes every so manieth pair of item and KV head.

    What the next pair and the next tile need is under way before this one is computed: at a few items a program, the
    time goes into waiting for memory.  With ``MERGE`` the results are added up as well, each row's by the program that
    came last; nobody waits for another.
    """
    BITS: tl.constexpr = tl.int32 if EXPONENT > 0xFFFF else tl.int16
    PRECISION: tl.constexpr = "tf32x3" if EXPONENT > 0xFFFF else "tf32"
    wait_device(DEPENDENT)
    o_lane = tl.arange(0, LANES)
    o_d = tl.arange(0, BLOCK_D)
    o_tile = tl.arange(0, TILE)
    o_thread = tl.arange(0, THREADS)
    m_d = (o_d < HD)[None, :]
    p_upto = p_row + R
    if MERGE:
        _write_zeros(p_out, p_row, first_row, SLAB, HKV * G * HD, THREADS)
    work = tl.program_id(0)
    work_end = tl.load(p_total) * HKV
    row, end, chunk, page, seen = _entry(p_item, work // HKV, item_stride, CAPACITY)
    while work < work_end:
        kv_head = work % HKV
        work += tl.num_programs(0)
        next_row, next_end, next_chunk, next_page, next_seen = _entry(p_item, work // HKV, item_stride, CAPACITY)
        width = (end - row) * G
        b_q, b_position, b_upto = _queries(
            p_q, p_upto, p_position, row, 0, width, kv_head, q_stride, G, HD, BLOCK_D, TILE
        )
        b_at = (chunk * LANES + o_lane).to(tl.int64)
        m_seen = b_at < seen
        if page >= 0:
            b_cell = page.to(tl.int64) * PAGE_SIZE + b_at % PAGE_SIZE
        else:
            base = tl.load(p_position + row) - tl.load(p_depth + row)
            b_depth = b_at - base
            m_path = m_seen & (b_depth >= 0)
            b_index = tl.load(p_path + row.to(tl.int64) * W + b_depth, mask=m_path, other=0)
            b_logical = tl.where(m_path, base + b_index, b_at)
            p_page = p_page_table + tl.load(p_slot + row) * P + b_logical // PAGE_SIZE
            b_cell = tl.load(p_page, mask=m_seen, other=0) * PAGE_SIZE + b_logical % PAGE_SIZE
        b_offset = (b_cell * (HKV * HD) + kv_head * HD)[:, None] + o_d[None, :]
        m_load = m_seen[:, None] & m_d
        b_key = tl.trans(tl.load(p_key + b_offset, mask=m_load, other=0.0))
        b_value = tl.load(p_value + b_offset, mask=m_load, other=0.0)
        b_value = tl.where((b_value.to(BITS, bitcast=True) & EXPONENT) == EXPONENT, 0.0, b_value)
        for start in range(0, width, TILE):
            next_q, next_position, next_upto = _queries(
                p_q, p_upto, p_position, row, start + TILE, width, kv_head, q_stride, G, HD, BLOCK_D, TILE
            )
            b_score = tl.dot(b_q.to(b_key.dtype), b_key, input_precision=PRECISION) * 1.4426950408889634
            b_least = tl.minimum(b_position, FIRST)
            m_visible = (b_at[None, :] <= b_position[:, None]) & (b_at[None, :] >= b_least[:, None])
            b_score = tl.where(m_visible, b_score, float("-inf"))
            b_highest = tl.max(b_score, 1)
            # where nothing is visible: -inf - -inf would be NaN
            b_reference = tl.where(b_highest == float("-inf"), 0.0, b_highest)
            b_p = tl.exp2(b_score - b_reference[:, None])
            b_sum = tl.dot(b_p.to(b_value.dtype), b_value, input_precision=PRECISION)
            o_flat = start + o_tile
            m_row = (o_flat < width) & ((b_upto > chunk) | (page < 0))
            b_to = ((row - first_row + o_flat // G).to(tl.int64) * (HKV * G) + kv_head * G + o_flat % G) * C + chunk
            tl.store(p_highest + b_to, b_highest, mask=m_row, cache_modifier=".cg")
            tl.store(p_weight + b_to, tl.sum(b_p, 1), mask=m_row, cache_modifier=".cg")
            p_to = p_sum + b_to[:, None] * HD + o_d[None, :]
            tl.store(p_to, b_sum, mask=m_row[:, None] & m_d, cache_modifier=".cg")
            b_q, b_position, b_upto = next_q, next_position, next_upto
        row, end, chunk, page, seen = next_row, next_end, next_chunk, next_page, next_seen
    if MERGE:
        # in a loop of its own, for what it holds in registers would be held, or spilled, all through the products
        work = tl.program_id(0)
        while work < work_end:
            row, end, chunk, page, seen = _entry(p_item, work // HKV, item_stride, CAPACITY)
            kv_head = work % HKV
            o_row = row + o_thread
            b_chunks = tl.load(p_row + o_row, mask=o_row < end, other=0)
            b_ordered = tl.load(p_upto + o_row, mask=o_row < end, other=0)
            m_row = (o_row < end) & ((b_ordered > chunk) | (page < 0))
            last = _draw(p_ticket + (o_row - first_row) * HKV + kv_head, m_row, b_chunks, o_thread)
            if last != 0:
                _merge(
                    p_highest, p_weight, p_sum, p_out, p_row, last, row, first_row, (end - row) * G, kv_head, C,
                    HKV, G, HD, BLOCK_D, TILE, STEP,
                )  # fmt: skip
            work += tl.num_programs(0)
