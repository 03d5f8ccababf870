"""Sampling on a CPU as one op of fixed output shape: reads only what can win, and picks exactly what the twin picks.

Compiled where there is a C compiler (sample_cpu.c).  What follows is torch's way, for where there is none.

Greedy rows: a float above zero orders as its bits do, and torch reduces integers several times as fast as bf16.

Sampled rows: noise lies in [LOWEST, HIGHEST], so a token further than HIGHEST − LOWEST below the row's maximum cannot
win.  If few tokens are left, noise is computed for these.  If many, Philox makes the words of the whole row, and since
g ≤ −log(u) only tokens with u ≤ exp(z − max z − LOWEST) can win, a handful.  Both bounds are tested on groups of four
tokens, which share a Philox counter, and are widened by more than any rounding: what they drop could not win.

With filters not the vocabulary is sorted but the tokens above max z − 6, if the cut-off lies lower those above
max z − 12, and only then all.
"""
# torch.library has no annotations
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import math

import torch

from redraft.kernels.filters import (
    FP32_MAX,
    MIN_TEMPERATURE,
    min_p_threshold,
    needed_weight,
    scale_logits,
    softmax_weight,
    sort_key,
)
from redraft.kernels.noise import HIGHEST, LOWEST, gumbel_of_uniform, philox_words, uniform_of_word
from redraft.kernels.vocab_cpu import greedy, is_compiled_for, sampled_rows

_WORD = 0xFFFFFFFF
_FEW = 4096
"""Up to so many tokens in reach, noise is computed token by token."""
_NEAR = (6.0, 12.0, float("inf"))
"""Distances below a row's maximum within which its cut-off is looked for."""


def greedy_rows(logits: torch.Tensor) -> torch.Tensor:
    """The lowest id with a row's largest logit, NaN counting as −∞: ``[R, V]`` → ``[R]``, on any device."""
    z = logits.nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    V = logits.shape[1]
    is_best = z == z.amax(1, keepdim=True)
    return torch.where(is_best, torch.arange(V, device=logits.device), V).amin(1)


def greedy_cpu(logits: torch.Tensor) -> torch.Tensor:
    """``greedy_rows`` for contiguous CPU tensors: compiled, or by integer reductions over blocks."""
    if is_compiled_for(logits):
        return greedy(logits)
    R, V = logits.shape
    as_int, infinity = (torch.int16, 0x7F80) if logits.dtype == torch.bfloat16 else (torch.int32, 0x7F800000)
    bits = logits.view(as_int)
    block = next((block for block in (1024, 512, 256, 128) if V % block == 0), 0)
    if not block:
        block = 1024
        bits = torch.nn.functional.pad(bits, (0, -V % block), value=torch.iinfo(as_int).min)
    blocks = bits.view(R, -1, block)
    block_best = blocks.amax(2)
    best = block_best.amax(1, keepdim=True)
    # lowest place of a flag: flags are 0 or 1, so flag · (n − place) is largest at the first one set
    n = block_best.shape[1]
    first_block = n - ((block_best == best) * torch.arange(n, 0, -1)).amax(1)
    first = block - ((blocks[torch.arange(R), first_block] == best) * torch.arange(block, 0, -1)).amax(1)
    choice = first_block * block + first
    for row, bit in enumerate(best.squeeze(1).tolist()):
        # nothing above zero (negative floats order the other way, and −0 equals 0), or a NaN
        if not 0 < bit <= infinity:
            choice[row] = greedy_rows(logits[row : row + 1])[0]
    return choice


def filtered_ids(z: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor, top_k: int) -> torch.Tensor:
    """The ids of ``z [V]`` that the filters keep; ``top_p`` and ``min_p`` are fp32 scalars, ``top_k`` 0 for off."""
    z_max = z.amax().clamp(min=-FP32_MAX)
    floor = min_p_threshold(z_max, min_p)
    by_p = bool(top_p < 1)
    if not by_p and not top_k:
        return (z >= floor).nonzero().squeeze(1)
    total = None
    if by_p and not top_k:
        total = softmax_weight((z[z >= floor] if min_p > 0 else z) - z_max).sum()
    kept = torch.empty(0, dtype=torch.int64)
    for distance in _NEAR:
        edge = torch.maximum(z_max - distance, floor)
        # every token at or above the edge is here, so these are the first of the row's order
        ids = (z >= edge).nonzero().squeeze(1)
        if edge > floor and len(ids) < top_k:
            continue
        kept = ids[sort_key(z[ids], ids).argsort(descending=True)[: top_k or None]]
        if not by_p or not len(kept):
            break
        running = softmax_weight(z[kept] - z_max).cumsum(0)
        needed = needed_weight(top_p, running[-1] if total is None else total)
        if running[-1] >= needed:
            kept = kept[: int((running < needed).sum()) + 1]
            break
    return kept


def _words_of_ids(seed: torch.Tensor, t: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The Philox words of tokens ``ids [M]``, token by token, with ``seed [M]`` and ``t [M]``."""
    words = torch.stack(philox_words(seed & _WORD, (seed >> 32) & _WORD, ids >> 2, t & _WORD), 1)
    return words.gather(1, (ids & 3)[:, None]).squeeze(1)


def _groups_that_may_win(z_group: torch.Tensor, bound: float, seed: int, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Groups ``[M]`` of ``z_group [G]`` that may reach ``bound`` with their noise, and their words ``[M, 4]``."""
    words = philox_words(seed & _WORD, (seed >> 32) & _WORD, torch.arange(len(z_group)), t & _WORD)
    smallest = torch.minimum(torch.minimum(words[0], words[1]), torch.minimum(words[2], words[3]))
    # k·2⁻³² ≤ exp(z − bound), on the words themselves
    group = (smallest.to(torch.float32) <= (z_group - (bound - 32 * math.log(2))).exp_()).nonzero().squeeze(1)
    return group, torch.stack([word[group] for word in words], 1)


def _ids_of_groups(group: torch.Tensor) -> torch.Tensor:
    return (group[:, None] * 4 + torch.arange(4)).view(-1)


def _winners(z: torch.Tensor, kept: list[torch.Tensor] | None, seed: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The lowest id with the largest z + g among those kept, for each row of ``z [S, V]``; 0 where all are −∞.

    ``kept`` has each row's ids after the filters, None without filters; ``seed`` and ``t`` are ``[S]`` int64.  What is
    not kept may become −∞ in ``z``.
    """
    V = z.shape[1]
    if V % 4:
        z = torch.nn.functional.pad(z, (0, -V % 4), value=float("-inf"))
    z_max = z.amax(1).clamp(min=-FP32_MAX)
    # more than the rounding of z + g and of the bounds themselves
    slack = 1e-3 + z_max.abs() * 2.0**-20
    reach, bounds = (z_max + (LOWEST - HIGHEST) - slack).tolist(), (z_max + LOWEST - slack).tolist()
    rows, ids, words = [], [], []
    few = []
    for row, z_row in enumerate(z.unbind()):
        if kept is not None and len(kept[row]) <= _FEW:
            few.append((row, kept[row]))
            continue
        if kept is not None:
            z_row.copy_(torch.full_like(z_row, float("-inf")).index_copy_(0, kept[row], z_row[kept[row]]))
        z_group = z_row.view(-1, 4).amax(1)
        near = (z_group >= reach[row]).nonzero().squeeze(1)
        if len(near) * 4 <= _FEW:
            few.append((row, _ids_of_groups(near)))
            continue
        group, words_of_group = _groups_that_may_win(z_group, bounds[row], int(seed[row]), int(t[row]))
        ids.append(_ids_of_groups(group))
        words.append(words_of_group.view(-1))
        rows.append(torch.full_like(ids[-1], row))
    if few:
        ids.append(torch.cat([found for _, found in few]))
        rows.append(torch.cat([torch.full_like(found, row) for row, found in few]))
        words.append(_words_of_ids(seed[rows[-1]], t[rows[-1]], ids[-1]))
    row_of, candidate = torch.cat(rows), torch.cat(ids)
    value = z[row_of, candidate] + gumbel_of_uniform(uniform_of_word(torch.cat(words)))
    best = torch.full_like(z_max, -FP32_MAX).scatter_reduce_(0, row_of, value, "amax")
    first = torch.full_like(t, V).scatter_reduce_(0, row_of, torch.where(value == best[row_of], candidate, V), "amin")
    return torch.where(first < V, first, 0)


def sample_cpu(
    logits: torch.Tensor,
    row_slot: torch.Tensor,
    row_position: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    top_k: torch.Tensor,
    seed: torch.Tensor,
    sampled: bool,
    filtered: bool,
) -> torch.Tensor:
    """``redraft.kernels.sample.sample`` with the table's tensors spelled out: choice ``[R]`` int64."""
    if sampled and is_compiled_for(logits):
        return sampled_rows(logits, row_slot, row_position, temperature, top_p, min_p, top_k, seed, filtered)
    logits = logits.contiguous()
    row_temperature = temperature[row_slot]
    is_hot = row_temperature >= MIN_TEMPERATURE
    if not sampled or not is_hot.any():
        return greedy_cpu(logits)
    choice = torch.empty_like(row_slot)
    if not is_hot.all():
        choice[~is_hot] = greedy_cpu(logits[~is_hot])
        logits, row_slot, row_position = logits[is_hot], row_slot[is_hot], row_position[is_hot]
    z = scale_logits(logits, row_temperature[is_hot])
    kept = None
    if filtered:
        top_ks = top_k[row_slot].tolist()
        kept = [filtered_ids(z[i], top_p[slot], min_p[slot], top_ks[i]) for i, slot in enumerate(row_slot.tolist())]
    choice[is_hot] = _winners(z, kept, seed[row_slot], row_position + 1)
    return choice


_LIBRARY = torch.library.Library("redraft", "FRAGMENT")
_LIBRARY.define(
    "sample_cpu(Tensor logits, Tensor row_slot, Tensor row_position, Tensor temperature, Tensor top_p, Tensor min_p, "
    "Tensor top_k, Tensor seed, bool sampled, bool filtered) -> Tensor"
)
_LIBRARY.impl("sample_cpu", sample_cpu, "CPU")


torch.library.register_fake(
    "redraft::sample_cpu", lambda _logits, row_slot, *_rest: torch.empty_like(row_slot), lib=_LIBRARY
)
