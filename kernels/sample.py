"""Draw each row's next token: argmax of logits at T = 0, of logits / T + Gumbel noise (after the filters) otherwise.

The noise is keyed by (seed, index of the token being produced, token id), so a row's token follows from its own logits
and its slot's parameters, whatever rows stand beside it (docs/structure.md).  Temperature first, then min_p, top_k,
top_p (filters.py).  Ties go to the lowest id; a NaN counts as −∞; a row of nothing but −∞ gives 0; no id is ever ≥ V.

On a GPU no probability is ever written: one program per row and block of the vocabulary finds that block's best token,
a second kernel takes the best of the blocks, and only if a row filters, others find the rows' cut-offs first
(cutoff.py).
"""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from dataclasses import dataclass

import torch

from redraft.kernels.cutoff import CHUNK, cutoff_kernel
from redraft.kernels.filters import (
    MIN_TEMPERATURE,
    cutoff_twin,
    scale_device,
    scale_logits,
    sort_key,
    sort_key_device,
)
from redraft.kernels.noise import gumbel_block_device, gumbel_twin
from redraft.kernels.sample_cpu import greedy_rows
from redraft.kernels.triton_support import CompileCase, check_tensor, jit, next_power_of_2, tl, use_triton


@dataclass(frozen=True)
class SamplingTable:
    """How each slot samples; every tensor is ``[S + 1]``, the last slot being that of padding rows."""

    temperature: torch.Tensor
    """fp32; below 1e-5 the slot is greedy."""
    top_p: torch.Tensor
    """fp32; 1 is off."""
    min_p: torch.Tensor
    """fp32; 0 is off."""
    top_k: torch.Tensor
    """int64; 0 is off."""
    seed: torch.Tensor
    """int64, all 64 bits of it."""

    @classmethod
    def greedy(cls, slots: int, device: torch.device | str) -> SamplingTable:
        """A table of ``slots`` + 1 greedy slots without filters, to be filled in place."""
        zeros = torch.zeros(slots + 1, device=device)
        whole = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        return cls(zeros, torch.ones_like(zeros), torch.zeros_like(zeros), whole, torch.zeros_like(whole))


def sample_twin(
    logits: torch.Tensor,
    row_slot: torch.Tensor,
    row_position: torch.Tensor,
    table: SamplingTable,
    *,
    sampled: bool,
    filtered: bool,
) -> torch.Tensor:
    """``sample`` in plain torch: fixed shapes, the whole vocabulary's noise, a full sort where a row filters."""
    choice = greedy_rows(logits)
    if not sampled:
        return choice
    temperature = table.temperature[row_slot]
    is_hot = temperature >= MIN_TEMPERATURE
    z = scale_logits(logits, torch.where(is_hot, temperature, 1.0))
    ids = torch.arange(logits.shape[1], device=logits.device)
    if filtered:
        cut = cutoff_twin(z, table.top_p[row_slot], table.min_p[row_slot], table.top_k[row_slot])
        z = torch.where(sort_key(z, ids) >= cut[:, None], z, float("-inf"))
    noise = gumbel_twin(table.seed[row_slot], row_position + 1, ids.expand_as(logits))
    return torch.where(is_hot, greedy_rows(z + noise), choice)


@jit
def best_of_block_kernel(
    p_logits,
    p_slot,
    p_position,
    p_temperature,
    p_seed,
    p_cut,
    p_value,
    p_id,
    V,
    GROUPS: tl.constexpr,
    SAMPLED: tl.constexpr,
    FILTERED: tl.constexpr,
):
    """One program per row and block of ``4·GROUPS`` tokens: ``p_logits [R, V]`` → ``p_value``, ``p_id [R, N]``."""
    i_row = tl.program_id(0).to(tl.int64)
    i_first = tl.program_id(1) * (4 * GROUPS)
    o_id = i_first + tl.arange(0, 4 * GROUPS)
    b_logits = tl.load(p_logits + i_row * V + o_id, mask=o_id < V, other=float("-inf")).to(tl.float32)
    b_value = tl.where(b_logits == b_logits, b_logits, float("-inf"))
    if SAMPLED:
        slot = tl.load(p_slot + i_row)
        temperature = tl.load(p_temperature + slot)
        if temperature >= 1e-5:
            b_z = scale_device(b_logits, temperature)
            b_value = b_z + gumbel_block_device(
                tl.load(p_seed + slot), tl.load(p_position + i_row) + 1, i_first, GROUPS
            )
            if FILTERED:
                b_value = tl.where(sort_key_device(b_z, o_id) >= tl.load(p_cut + i_row), b_value, float("-inf"))
    best = tl.max(b_value, 0)
    o_out = i_row * tl.num_programs(1) + tl.program_id(1)
    tl.store(p_value + o_out, best)
    # lanes beyond V are −inf and come last: they never hold the lowest id
    tl.store(p_id + o_out, tl.min(tl.where(b_value == best, o_id, 2147483647), 0))


@jit
def best_of_blocks_kernel(p_value, p_id, p_choice, N, BLOCK: tl.constexpr):
    """One program per row: the lowest id with the largest value of ``p_value``, ``p_id [R, N]`` → ``p_choice [R]``."""
    i_row = tl.program_id(0).to(tl.int64)
    o_block = tl.arange(0, BLOCK)
    m_block = o_block < N
    b_value = tl.load(p_value + i_row * N + o_block, mask=m_block, other=float("-inf"))
    b_id = tl.load(p_id + i_row * N + o_block, mask=m_block, other=2147483647)
    best = tl.max(b_value, 0)
    tl.store(p_choice + i_row, tl.min(tl.where(b_value == best, b_id, 2147483647), 0).to(tl.int64))


def sample_kernel(
    logits: torch.Tensor,
    row_slot: torch.Tensor,
    row_position: torch.Tensor,
    table: SamplingTable,
    *,
    sampled: bool,
    filtered: bool,
    block: int = 2048,
) -> torch.Tensor:
    """``sample`` in Triton, two launches or eight; ``block`` is the tokens of a program, a power of two ≥ 4."""
    check_tensor("logits", logits, 2, torch.float32, torch.bfloat16, torch.float16)
    check_tensor("row_slot", row_slot, 1, torch.int64, like=logits)
    check_tensor("row_position", row_position, 1, torch.int64, like=logits)
    check_tensor("table.temperature", table.temperature, 1, torch.float32, like=logits)
    check_tensor("table.seed", table.seed, 1, torch.int64, like=logits)
    R, V = logits.shape
    choice = torch.empty(R, dtype=torch.int64, device=logits.device)
    if not R:
        return choice
    blocks = -(-V // block)
    value = torch.empty(R, blocks, dtype=torch.float32, device=logits.device)
    ids = torch.empty(R, blocks, dtype=torch.int32, device=logits.device)
    cut = row_slot
    if sampled and filtered:
        tables = (table.temperature, table.top_p, table.min_p, table.top_k)
        cut = cutoff_kernel(logits, row_slot, *tables, chunk=min(CHUNK, 2 * block))
    best_of_block_kernel[(R, blocks)](
        logits,
        row_slot,
        row_position,
        table.temperature,
        table.seed,
        cut,
        value,
        ids,
        V,
        GROUPS=block // 4,
        SAMPLED=sampled,
        FILTERED=filtered,
        num_warps=8,
        enable_fp_fusion=False,
    )
    best_of_blocks_kernel[(R,)](value, ids, choice, blocks, BLOCK=next_power_of_2(blocks), num_warps=1)
    return choice


def sample(
    logits: torch.Tensor,
    row_slot: torch.Tensor,
    row_position: torch.Tensor,
    table: SamplingTable,
    *,
    sampled: bool,
    filtered: bool,
) -> torch.Tensor:
    """The next token of every row: ``[R]`` int64.

    ``logits [R, V]`` fp32 or bf16; ``row_slot [R]`` int64 indexes ``table``; ``row_position [R]`` int64 is the index of
    the row's token, so the one produced has index ``row_position + 1``.  ``sampled`` False says that every row is
    greedy, ``filtered`` False that no row uses top_k, top_p or min_p: the host knows both without asking the device.
    """
    if use_triton(logits):
        return sample_kernel(logits, row_slot, row_position, table, sampled=sampled, filtered=filtered)
    if logits.device.type != "cpu":
        return sample_twin(logits, row_slot, row_position, table, sampled=sampled, filtered=filtered)
    choice: torch.Tensor = torch.ops.redraft.sample_cpu(
        logits,
        row_slot,
        row_position,
        table.temperature,
        table.top_p,
        table.min_p,
        table.top_k,
        table.seed,
        sampled,
        filtered,
    )
    return choice


COMPILE_CASES = (
    *(
        CompileCase(
            best_of_block_kernel,
            {
                "p_logits": dtype,
                "p_slot": "*i64",
                "p_position": "*i64",
                "p_temperature": "*fp32",
                "p_seed": "*i64",
                "p_cut": "*i64",
                "p_value": "*fp32",
                "p_id": "*i32",
                "V": "i32",
            },
            {"GROUPS": 512, "SAMPLED": sampled, "FILTERED": sampled},
            num_warps=8,
            enable_fp_fusion=False,
        )
        for dtype, sampled in (("*bf16", False), ("*bf16", True), ("*fp32", True))
    ),
    CompileCase(
        best_of_blocks_kernel,
        {"p_value": "*fp32", "p_id": "*i32", "p_choice": "*i64", "N": "i32"},
        {"BLOCK": 128},
        num_warps=1,
    ),
)
