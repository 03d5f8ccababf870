"""Log-probabilities of chosen tokens and of the likeliest ones: the target's own, of logits as the pass made them.

Before temperature, penalties, bias and masks, in fp32.  A row's values follow from its own logits alone, to the bit and
on every device: weights are exp(z - max z) in units of 2⁻⁴⁰ whose integer sum knows no order, and the logarithm is a
written-out polynomial (filters.py, noise.py).  What the truncation loses is below fp32's own rounding.  Ties among the
likeliest go to the lowest id; a NaN counts as −∞.

Compiled on a CPU where there is a compiler (logprobs_cpu.c), else plain torch on every device: few rows ask for it, and
it is a reduction and a selection over the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.kernels.filters import FP32_MAX, scale_logits, softmax_weight, sort_key
from redraft.kernels.noise import log_fp32
from redraft.kernels.vocab_cpu import MOST, is_compiled_for, scores_of_rows

CHUNK = 32
"""Rows at a time, which bounds the memory for int64 keys and weights of whole vocabularies."""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of N rows, each with its ``K`` likeliest tokens, likeliest first."""

    chosen: Tensor
    """[N] fp32, log-probability of the row's chosen token."""
    rank: Tensor
    """[N] int64, 1 for the likeliest token."""
    token: Tensor
    """[N, K] int64."""
    value: Tensor
    """[N, K] fp32."""


def logprobs(logits: Tensor, choice: Tensor, top: int) -> Logprobs:
    """``logits`` [N, V] fp32 or bf16, ``choice`` [N] int64, ``top`` = K ≥ 0, at most V."""
    if top <= MOST and is_compiled_for(logits):
        return Logprobs(*scores_of_rows(logits, choice, top))
    parts = [
        _of_chunk(logits[start : start + CHUNK], choice[start : start + CHUNK], top)
        for start in range(0, max(len(logits), 1), CHUNK)
    ]
    return Logprobs(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _of_chunk(logits: Tensor, choice: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z = scale_logits(logits, torch.ones(len(logits), device=logits.device))
    z_max = z.amax(1, keepdim=True).clamp(min=-FP32_MAX)
    total = softmax_weight(z - z_max).sum(1, keepdim=True).clamp_(min=1)
    base = log_fp32(total.to(torch.float32) * 2.0**-40)
    # unique integers, so that which are the largest is no matter of the algorithm
    keys = sort_key(z, torch.arange(z.shape[1], device=z.device))
    token = keys.topk(top, dim=1).indices
    index = choice.unsqueeze(1)
    rank = (keys > keys.gather(1, index)).sum(1) + 1
    chosen, value = (z.gather(1, ids) - z_max - base for ids in (index, token))
    return chosen.squeeze(1), rank, token, value
