"""The device's part of ``cutoff.py``: marks between which a cut-off lies, and the bisection of what is left."""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from redraft.kernels.filters import order_bits_device, scale_device, softmax_weight_device, sort_key_device
from redraft.kernels.noise import log_device
from redraft.kernels.triton_support import jit, tl


@jit
def asked(p_slot, p_temperature, p_top_p, p_min_p, p_top_k, i_row):
    """A row's temperature and filters; all off where it is greedy."""
    slot = tl.load(p_slot + i_row)
    temperature = tl.load(p_temperature + slot)
    hot = temperature >= 1e-5
    top_p = tl.where(hot, tl.load(p_top_p + slot), 1.0)
    min_p = tl.where(hot, tl.load(p_min_p + slot), 0.0)
    return temperature, top_p, min_p, tl.where(hot, tl.load(p_top_k + slot), 0)


@jit
def rank_of(z):
    """An int32 that orders as ``z`` does."""
    return order_bits_device(tl.where(z == 0.0, 0.0, z)).to(tl.int32)


@jit
def number_of(rank):
    """The z of a rank."""
    return (rank ^ ((rank >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@jit
def extent(p_highest, i_row, C, min_p, CHUNKS: tl.constexpr):
    """A row's largest z, and the rank of the smallest that min_p keeps."""
    o_chunk = tl.arange(0, CHUNKS)
    b_highest = tl.load(p_highest + i_row * C + o_chunk, mask=o_chunk < C, other=float("-inf"))
    z_max = tl.maximum(tl.max(b_highest, 0), -3.4028234663852886e38)
    least = z_max + log_device(tl.minimum(tl.maximum(min_p, 1.1754943508222875e-38), 1.0))
    return z_max, tl.where(min_p > 0.0, rank_of(least), -2147483648)


@jit
def first_marks(z_max, floor, MARKS: tl.constexpr):
    """[MARKS] ranks from the largest z down to 28 below it, closer where likely tokens are; none below ``floor``."""
    b_one = (tl.arange(0, MARKS) + 1).to(tl.float32) / MARKS
    return tl.maximum(rank_of(z_max - 28.0 * (b_one * b_one)), floor)


@jit
def more_marks(lowest, above, MARKS: tl.constexpr):
    """[MARKS] ranks of evenly spaced numbers from below ``above`` down to ``lowest``."""
    o_mark = tl.arange(0, MARKS)
    most, least = number_of(above - 1), number_of(lowest)
    b_rank = rank_of(most - (most - least) * ((o_mark + 1).to(tl.float32) / MARKS))
    return tl.where(o_mark == MARKS - 1, lowest, tl.maximum(b_rank, lowest))


@jit
def _sums(
    p_count, p_weight, i_row, C, PASS: tl.constexpr, PASSES: tl.constexpr, CHUNKS: tl.constexpr, MARKS: tl.constexpr
):  # fmt: skip
    """[CHUNKS, MARKS] counts and weights of a row as pass ``PASS`` left them."""
    o_chunk = tl.arange(0, CHUNKS)
    o_sum = ((i_row * PASSES + PASS) * C + o_chunk)[:, None] * MARKS + tl.arange(0, MARKS)[None, :]
    m_chunk = (o_chunk < C)[:, None]
    return tl.load(p_count + o_sum, mask=m_chunk, other=0), tl.load(p_weight + o_sum, mask=m_chunk, other=0)


@jit
def _at(b_x, mark, MARKS: tl.constexpr):
    """Of ``b_x`` [MARKS] the number at ``mark``, 0 at -1."""
    return tl.sum(tl.where(tl.arange(0, MARKS) == mark, b_x, 0), 0)


@jit
def _column(b_x, mark, MARKS: tl.constexpr):
    """Of ``b_x`` [CHUNKS, MARKS] the column at ``mark``, zeros at -1."""
    return tl.sum(tl.where((tl.arange(0, MARKS) == mark)[None, :], b_x, 0), 1)


@jit
def narrow(
    p_count, p_weight, i_row, C, z_max, floor, top_p, top_k,
    DONE: tl.constexpr, PASSES: tl.constexpr, CHUNKS: tl.constexpr, MARKS: tl.constexpr,
):  # fmt: skip
    """What is looked for, and between which marks it lies by the first ``DONE`` of ``PASSES`` passes.

    By 1 count, by 2 weight, 0 nothing or 3 what only sweeps find; the lowest rank that may be it and the first above;
    what is above weighs; the weight that has to be reached; [CHUNKS] tokens above, and [CHUNKS] down to the lowest.
    """
    b_counts, b_weights = _sums(p_count, p_weight, i_row, C, 0, PASSES, CHUNKS, MARKS)
    b_count, b_weight = tl.sum(b_counts.to(tl.int64), 0), tl.sum(b_weights, 0)
    total = tl.max(b_weight, 0)
    needed = tl.maximum(tl.ceil(top_p.to(tl.float64) * total.to(tl.float64)).to(tl.int64), 1)
    by_count = (top_k > 0) & (tl.max(b_count, 0) >= top_k)
    swept = (top_k > 0) & (tl.max(b_count, 0) < top_k) & (tl.abs(z_max) >= 1048576.0)
    by_weight = (top_p < 1.0) & (total > 0)
    kind = tl.where(by_count, 1, tl.where(swept, 3, tl.where(by_weight, 2, 0)))
    mark = MARKS - tl.sum(tl.where(by_count, b_count >= top_k, b_weight >= needed).to(tl.int32), 0)
    # numbers, also where nothing is found
    mark = tl.where(mark < MARKS, mark, 0)
    b_mark = first_marks(z_max, floor, MARKS)
    lowest = _at(b_mark, mark, MARKS)
    above = tl.where(mark > 0, _at(b_mark, mark - 1, MARKS), rank_of(z_max) + 1)
    count, weight = _at(b_count, mark - 1, MARKS), _at(b_weight, mark - 1, MARKS)
    b_above, b_upto = _column(b_counts, mark - 1, MARKS), _column(b_counts, mark, MARKS)
    for number in tl.static_range(1, DONE):
        b_mark = more_marks(lowest, above, MARKS)
        b_counts, b_weights = _sums(p_count, p_weight, i_row, C, number, PASSES, CHUNKS, MARKS)
        b_count, b_weight = count + tl.sum(b_counts.to(tl.int64), 0), weight + tl.sum(b_weights, 0)
        mark = MARKS - tl.sum(tl.where(kind == 1, b_count >= top_k, b_weight >= needed).to(tl.int32), 0)
        mark = tl.where(mark < MARKS, mark, 0)
        lowest = _at(b_mark, mark, MARKS)
        above = tl.where(mark > 0, _at(b_mark, mark - 1, MARKS), above)
        count = tl.where(mark > 0, _at(b_count, mark - 1, MARKS), count)
        weight = tl.where(mark > 0, _at(b_weight, mark - 1, MARKS), weight)
        b_upto = b_above + _column(b_counts, mark, MARKS)
        b_above += _column(b_counts, mark - 1, MARKS)
    return kind, lowest, above, weight, needed, b_above, b_upto


@jit
def listed_of(
    p_count, p_weight, i_row, C, z_max, floor, top_p, top_k,
    PASSES: tl.constexpr, CHUNKS: tl.constexpr, MARKS: tl.constexpr,
):  # fmt: skip
    """The same after all passes, but of tokens that are listed: [CHUNKS] from the lowest rank up to the first above."""
    kind, lowest, above, weight, needed, b_above, b_upto = narrow(
        p_count, p_weight, i_row, C, z_max, floor, top_p, top_k, PASSES, PASSES, CHUNKS, MARKS
    )
    # all that top_k may keep
    above = tl.where(kind == 1, rank_of(z_max) + 1, above)
    return kind, lowest, above, tl.where(kind == 1, 0, weight), needed, b_upto - tl.where(kind == 1, 0, b_above)


@jit
def _prefix(
    b_key, b_weight, p_row, V, temperature, z_max, cut, STEP: tl.constexpr, SWEPT: tl.constexpr
):  # fmt: skip
    """How many tokens have a key of at least ``cut``, and what they weigh: of those listed, or of the row."""
    if SWEPT:
        b_count, b_sum = tl.zeros([STEP], tl.int64), tl.zeros([STEP], tl.int64)
        for i_first in range(0, V, STEP):
            o_id = i_first + tl.arange(0, STEP)
            m_id = o_id < V
            b_z = scale_device(tl.load(p_row + o_id, mask=m_id, other=float("-inf")), temperature)
            m_kept = m_id & (sort_key_device(b_z, o_id) >= cut)
            b_count += m_kept.to(tl.int64)
            b_sum += tl.where(m_kept, softmax_weight_device(b_z - z_max), 0)
    else:
        b_count = (b_key >= cut).to(tl.int64)
        b_sum = tl.where(b_key >= cut, b_weight, 0)
    return tl.sum(b_count, 0), tl.sum(b_sum, 0)


@jit
def bisect(
    b_key, b_weight, p_row, V, temperature, z_max, kind, cut, above, heavier, needed, top_p, top_k,
    STEP: tl.constexpr, SWEPT: tl.constexpr,
):  # fmt: skip
    """The cut-off, which lies in [``cut``, ``above``); what is above the listed weighs ``heavier``."""
    if kind != 2:
        high = above
        count, total = _prefix(b_key, b_weight, p_row, V, temperature, z_max, cut, STEP, SWEPT)
        while count > top_k:
            # the mean rounded down, without overflow
            middle = (cut >> 1) + (high >> 1) + (cut & high & 1)
            count_middle, total_middle = _prefix(b_key, b_weight, p_row, V, temperature, z_max, middle, STEP, SWEPT)
            if count_middle >= top_k:
                cut, count, total = middle, count_middle, total_middle
            else:
                high = middle
        needed = tl.maximum(tl.ceil(top_p.to(tl.float64) * total.to(tl.float64)).to(tl.int64), 1)
    if top_p < 1.0:
        count, total = _prefix(b_key, b_weight, p_row, V, temperature, z_max, cut, STEP, SWEPT)
        count_high, total = _prefix(b_key, b_weight, p_row, V, temperature, z_max, above, STEP, SWEPT)
        # the last token kept lies in [cut, above)
        while count - count_high > 1:
            middle = (cut >> 1) + (above >> 1) + (cut & above & 1)
            count_middle, total = _prefix(b_key, b_weight, p_row, V, temperature, z_max, middle, STEP, SWEPT)
            if heavier + total >= needed:
                cut, count = middle, count_middle
            else:
                above, count_high = middle, count_middle
    return cut
