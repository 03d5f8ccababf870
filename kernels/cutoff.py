"""The cut-offs of filtered rows on a GPU: five passes over the logits by many programs a row, whatever the filters.

filters.py says what a cut-off is.  Who looks for it needs, of any z, how many tokens reach it and what they weigh.  A
sweep over the vocabulary for each z that is tried, 57 to 100 in turn, would take longer than a round of a small target,
so all programs of a row look at ``MARKS`` numbers at a time, and after three times as many few tokens are left:

1. the largest z of every chunk of tokens (``_highest_of_chunk``);
2. counts and weights of each chunk's tokens down to every mark: between the largest z and 28 below it, then between
   those two of these marks that the cut-off lies between, then once more (``_sums_of_chunk``, three times);
3. the keys of the tokens between the two marks that are left then, or of all above, too, where top_k is on, whose few
   tokens are what top_p is about (``_list_chunk``);
4. bisection of keys that stay in registers (``_cut``), exact because keys are integers and distinct.

Counts and weights are integers, so sums do not depend on who adds them.  Nobody waits for another, nothing is atomic,
and nothing has to be cleared before: each launch reads what the one before left of every chunk.

What is further than 28 below the largest z weighs nothing and is never drawn, for noise differs by less than 25
(noise.py): top_k may keep all of it.  That holds where fp32 has room for noise beside z, below 2²⁰; larger rows, and
those of which more than ``LISTED`` tokens are left (logits that hardly differ, or top_k in the thousands), are bisected
by sweeps after all, one program each.

16 rows of 151,936 in bf16 are 5 MB, which lie in the second cache: 2 to 4 microseconds a pass of loads, some 8 for the
first marks' comparisons, a bisection 5, a launch 2.5: about 40 where sweeps take 2,000 to 4,000.  Their floor is 1.6
microseconds for reading them once, and a launch.  Reasoned, not measured.
"""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Any

import torch

from redraft.kernels.cutoff_device import (
    asked,
    bisect,
    extent,
    first_marks,
    listed_of,
    more_marks,
    narrow,
    number_of,
    rank_of,
)
from redraft.kernels.filters import scale_device, softmax_weight_device, sort_key_device
from redraft.kernels.triton_support import CompileCase, check_tensor, jit, next_power_of_2, tl

MARKS = 16
PASSES = 3
"""With two, thousands of 151,936 tokens are left of a flat row: more than registers hold."""
CHUNK = 4096
"""Tokens that a program goes through."""
STEP = 256
"""Tokens that it compares with all marks at a time: as many counts and weights as registers hold."""
LISTED = 2048
"""Tokens of a row that registers hold: of 151,936 normally distributed ones some hundreds are left, and top_k more."""


@jit
def _highest_of_chunk(
    p_logits, p_slot, p_temperature, p_top_p, p_min_p, p_top_k, p_highest, V, CHUNK: tl.constexpr
):  # fmt: skip
    """One program per row and chunk of ``p_logits`` [R, V]: the largest z → ``p_highest`` [R, C]."""
    i_row = tl.program_id(0).to(tl.int64)
    i_chunk = tl.program_id(1)
    temperature, top_p, min_p, top_k = asked(p_slot, p_temperature, p_top_p, p_min_p, p_top_k, i_row)
    if (top_p < 1.0) | (min_p > 0.0) | (top_k > 0):
        o_id = i_chunk * CHUNK + tl.arange(0, CHUNK)
        b_logits = tl.load(p_logits + i_row * V + o_id, mask=o_id < V, other=float("-inf"))
        highest = tl.max(scale_device(b_logits, temperature), 0)
        tl.store(p_highest + i_row * tl.num_programs(1) + i_chunk, highest)


@jit
def _sums_of_chunk(
    p_logits, p_slot, p_temperature, p_top_p, p_min_p, p_top_k, p_highest, p_count, p_weight, V,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr, STEP: tl.constexpr, MARKS: tl.constexpr,
    PASSES: tl.constexpr, PASS: tl.constexpr,
):  # fmt: skip
    """One program per row and chunk: count and weight of tokens down to each mark → [R, PASSES, C, MARKS]."""
    i_row = tl.program_id(0).to(tl.int64)
    i_chunk = tl.program_id(1)
    C = tl.num_programs(1)
    temperature, top_p, min_p, top_k = asked(p_slot, p_temperature, p_top_p, p_min_p, p_top_k, i_row)
    if (top_p < 1.0) | (top_k > 0):
        z_max, floor = extent(p_highest, i_row, C, min_p, CHUNKS)
        above, end = rank_of(z_max) + 1, tl.minimum(V, (i_chunk + 1) * CHUNK)
        if PASS == 0:
            b_mark = first_marks(z_max, floor, MARKS)
        else:
            kind, lowest, above, _, _, _, _ = narrow(
                p_count, p_weight, i_row, C, z_max, floor, top_p, top_k, PASS, PASSES, CHUNKS, MARKS
            )
            b_mark = more_marks(lowest, above, MARKS)
            end = tl.where((kind == 1) | (kind == 2), end, 0)
        least = tl.min(b_mark, 0)
        b_count, b_weight = tl.zeros([MARKS, STEP], tl.int32), tl.zeros([MARKS, STEP], tl.int64)
        for i_first in range(i_chunk * CHUNK, end, STEP):
            o_id = i_first + tl.arange(0, STEP)
            m_id = o_id < V
            b_logits = tl.load(p_logits + i_row * V + o_id, mask=m_id, other=float("-inf"))
            b_z = scale_device(b_logits, temperature)
            b_rank = rank_of(b_z)
            m_here = m_id & (b_rank >= least) & (b_rank < above)
            if tl.max(m_here.to(tl.int32), 0) > 0:
                m_reached = m_here[None, :] & (b_rank[None, :] >= b_mark[:, None])
                b_count += m_reached.to(tl.int32)
                b_weight += tl.where(m_reached, softmax_weight_device(b_z - z_max)[None, :], 0)
        o_out = ((i_row * PASSES + PASS) * C + i_chunk) * MARKS + tl.arange(0, MARKS)
        tl.store(p_count + o_out, tl.sum(b_count, 1))
        tl.store(p_weight + o_out, tl.sum(b_weight, 1))


@jit
def _list_chunk(
    p_logits, p_slot, p_temperature, p_top_p, p_min_p, p_top_k, p_highest, p_count, p_weight, p_listed, V,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr, STEP: tl.constexpr, MARKS: tl.constexpr,
    PASSES: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """One program per row and chunk: keys of its tokens that are left → ``p_listed`` [R, LISTED], as many as fit."""
    i_row = tl.program_id(0).to(tl.int64)
    i_chunk = tl.program_id(1)
    C = tl.num_programs(1)
    temperature, top_p, min_p, top_k = asked(p_slot, p_temperature, p_top_p, p_min_p, p_top_k, i_row)
    if (top_p < 1.0) | (top_k > 0):
        z_max, floor = extent(p_highest, i_row, C, min_p, CHUNKS)
        kind, lowest, above, _, _, b_listed = listed_of(
            p_count, p_weight, i_row, C, z_max, floor, top_p, top_k, PASSES, CHUNKS, MARKS
        )
        o_chunk = tl.arange(0, CHUNKS)
        place = tl.sum(tl.where(o_chunk < i_chunk, b_listed, 0), 0)
        here = tl.sum(tl.where(o_chunk == i_chunk, b_listed, 0), 0)
        if ((kind == 1) | (kind == 2)) & (here > 0) & (place < LISTED):
            for i_first in range(i_chunk * CHUNK, tl.minimum(V, (i_chunk + 1) * CHUNK), STEP):
                o_id = i_first + tl.arange(0, STEP)
                m_id = o_id < V
                b_logits = tl.load(p_logits + i_row * V + o_id, mask=m_id, other=float("-inf"))
                b_z = scale_device(b_logits, temperature)
                b_rank = rank_of(b_z)
                m_here = m_id & (b_rank >= lowest) & (b_rank < above)
                b_place = place + tl.cumsum(m_here.to(tl.int32), 0) - 1
                p_to = p_listed + i_row * LISTED + b_place
                tl.store(p_to, sort_key_device(b_z, o_id), mask=m_here & (b_place < LISTED))
                place += tl.sum(m_here.to(tl.int32), 0)


@jit(do_not_specialize=["C"])
def _cut(
    p_logits, p_slot, p_temperature, p_top_p, p_min_p, p_top_k, p_highest, p_count, p_weight, p_listed, p_cut, V, C,
    CHUNKS: tl.constexpr, STEP: tl.constexpr, MARKS: tl.constexpr,
    PASSES: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """One program per row → ``p_cut`` [R]; any number in the gap between two keys may stand for the upper."""
    i_row = tl.program_id(0).to(tl.int64)
    temperature, top_p, min_p, top_k = asked(p_slot, p_temperature, p_top_p, p_min_p, p_top_k, i_row)
    cut = tl.full([], -9223372036854775808, tl.int64)
    if (top_p < 1.0) | (min_p > 0.0) | (top_k > 0):
        z_max, floor = extent(p_highest, i_row, C, min_p, CHUNKS)
        cut = floor.to(tl.int64) << 32
        if (top_p < 1.0) | (top_k > 0):
            kind, lowest, above, heavier, needed, b_listed = listed_of(
                p_count, p_weight, i_row, C, z_max, floor, top_p, top_k, PASSES, CHUNKS, MARKS
            )
            listed = tl.sum(b_listed, 0)
            o_key = tl.arange(0, LISTED)
            m_key = (o_key < listed) & ((kind == 1) | (kind == 2))
            b_key = tl.load(p_listed + i_row * LISTED + o_key, mask=m_key, other=-9223372036854775808)
            b_distance = number_of((b_key >> 32).to(tl.int32)) - z_max
            b_weight = tl.where(m_key, softmax_weight_device(tl.where(m_key, b_distance, 0.0)), 0)
            p_row = p_logits + i_row * V
            if kind == 3:
                above = rank_of(z_max) + 1
            else:
                cut = tl.where(kind > 0, lowest.to(tl.int64) << 32, cut)
            high = above.to(tl.int64) << 32
            if (kind == 3) | ((kind > 0) & (listed > LISTED)):
                cut = bisect(
                    b_key, b_weight, p_row, V, temperature, z_max, kind, cut, high, heavier * 0, needed, top_p, top_k,
                    STEP, True,
                )  # fmt: skip
            elif kind > 0:
                cut = bisect(
                    b_key, b_weight, p_row, V, temperature, z_max, kind, cut, high, heavier, needed, top_p, top_k,
                    STEP, False,
                )  # fmt: skip
    tl.store(p_cut + i_row, cut)


def cutoff_kernel(
    logits: torch.Tensor,
    row_slot: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    top_k: torch.Tensor,
    *,
    chunk: int = CHUNK,
    listed: int = LISTED,
) -> torch.Tensor:
    """A cut-off for each row of ``logits [R, V]`` in six launches: ``[R]`` int64.

    Lowest for greedy rows and rows without filters; of tokens that may be drawn it keeps what the twin's keeps.
    ``row_slot [R]`` int64 indexes the tables ``temperature``, ``top_p``, ``min_p`` (fp32) and ``top_k`` (int64);
    ``chunk``, tokens of a program, and ``listed`` are powers of two.
    """
    check_tensor("logits", logits, 2, torch.float32, torch.bfloat16, torch.float16)
    check_tensor("row_slot", row_slot, 1, torch.int64, like=logits)
    for name, table in (("temperature", temperature), ("top_p", top_p), ("min_p", min_p)):
        check_tensor(name, table, 1, torch.float32, like=logits)
    check_tensor("top_k", top_k, 1, torch.int64, like=logits)
    R, V = logits.shape
    C = -(-V // chunk)

    def room(dtype: torch.dtype, *size: int) -> torch.Tensor:
        return torch.empty(R, *size, dtype=dtype, device=logits.device)

    cut = room(torch.int64)
    if R:
        row = (logits, row_slot, temperature, top_p, min_p, top_k, room(torch.float32, C))
        sums = (room(torch.int32, PASSES, C, MARKS), room(torch.int64, PASSES, C, MARKS))
        found = room(torch.int64, listed)
        sizes = {"CHUNK": chunk, "CHUNKS": next_power_of_2(C), "STEP": min(STEP, chunk), "MARKS": MARKS}
        sizes["PASSES"] = PASSES
        _highest_of_chunk[(R, C)](*row, V, CHUNK=chunk, **_OPTIONS)
        for number in range(PASSES):
            _sums_of_chunk[(R, C)](*row, *sums, V, **sizes, PASS=number, **_OPTIONS)
        _list_chunk[(R, C)](*row, *sums, found, V, **sizes, LISTED=listed, **_OPTIONS)
        del sizes["CHUNK"]
        _cut[(R,)](*row, *sums, found, cut, V, C, **sizes, LISTED=listed, **_OPTIONS)
    return cut


_OPTIONS: dict[str, Any] = {"num_warps": 8, "maxnreg": 128, "enable_fp_fusion": False}
_TYPES = {
    **dict.fromkeys(("p_slot", "p_top_k", "p_weight", "p_listed", "p_cut"), "*i64"),
    **dict.fromkeys(("p_temperature", "p_top_p", "p_min_p", "p_highest"), "*fp32"),
    "p_count": "*i32",
    **dict.fromkeys(("V", "C"), "i32"),
}


def _cases(dtype: str, chunks: int, divisible: tuple[str, ...]) -> list[CompileCase]:
    sizes = {"CHUNKS": chunks, "STEP": STEP, "MARKS": MARKS, "PASSES": PASSES}
    constants = (
        (_highest_of_chunk, {"CHUNK": CHUNK}),
        *((_sums_of_chunk, {**sizes, "CHUNK": CHUNK, "PASS": number}) for number in range(PASSES)),
        (_list_chunk, {**sizes, "CHUNK": CHUNK, "LISTED": LISTED}),
        (_cut, {**sizes, "LISTED": LISTED}),
    )
    types = {"p_logits": dtype, **_TYPES}
    return [CompileCase(kernel, types, of, divisible=divisible, **_OPTIONS) for kernel, of in constants]


COMPILE_CASES = [*_cases("*bf16", 64, ("V",)), *_cases("*fp32", 16, ())]
"""Of 151,936 tokens and of 49,152."""
