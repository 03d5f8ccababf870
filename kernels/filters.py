"""Top-k, top-p and min-p as one cut-off per row.

Order a row's tokens by (z descending, id ascending).  Each filter keeps a prefix of that order, so all three together
are one cut-off: token v survives if ``sort_key(z)[v] >= cut``.  In this order of application:

- min_p: z ≥ max z + log(min_p);
- top_k: the first k of what is left (ties at the cut-off: the lowest ids);
- top_p: the shortest prefix of what is left whose share of the softmax over what is left reaches top_p (at least one).

Everything is decided in integers: a key is an order-preserving integer of (z, id), a softmax weight is exp(z − max z)
in units of 2⁻⁴⁰, truncated.  Sums of integers do not depend on their order, so twin, CPU path and Triton's search
(cutoff.py) keep the same tokens, whatever the block size.  A token below 2⁻⁴⁰ of the likeliest weighs nothing;
top_p ≥ 1 is off.
"""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch

from redraft.kernels.noise import log_fp32
from redraft.kernels.triton_support import jit, tl

FP32_MAX = 3.4028234663852886e38
FP32_TINY = 2.0**-126
MIN_TEMPERATURE = 1e-5
"""Rows below it are greedy: dividing by it could overflow, and any gap between logits above 3e-4 decides anyway."""


def scale_logits(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """z = logits / T in fp32 with NaN as −∞, +∞ as fp32's maximum and no −0: ``[R, V]``, ``[R]`` → ``[R, V]``."""
    z = logits.to(torch.float32, copy=True).div_(temperature[:, None])
    return z.nan_to_num_(nan=float("-inf"), posinf=FP32_MAX, neginf=float("-inf")).add_(0.0)


def order_bits(z: torch.Tensor) -> torch.Tensor:
    """An int64 within 32 bits that orders as ``z`` (fp32, no NaN, no −0) does."""
    bits = z.contiguous().view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64)


def sort_key(z: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """An int64 that orders as (z ascending, id descending) does."""
    return (order_bits(z) << 32) + (0xFFFFFFFF - ids)


def softmax_weight(distance: torch.Tensor) -> torch.Tensor:
    """exp(distance)·2⁴⁰, truncated to int64, for ``distance`` = z − max z ≤ 0; 0 below about −28.

    exp by 2ⁿ·exp(r), |r| ≤ ½·log 2, and Taylor's series of degree 7; the same bits in any place of a tensor.
    """
    x = distance.clamp(min=-30.0)
    n = (x * 1.4426950408889634).add_(0.5).floor_()
    r = x.sub_(n * 0.693359375).sub_(n * -2.12194440e-4)
    series = (r * (1 / 5040)).add_(1 / 720)
    for coefficient in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        series.mul_(r).add_(coefficient)
    power = n.to(torch.int32).add_(127 + 40).bitwise_left_shift_(23).view(torch.float32)
    return series.mul_(power).to(torch.int64)


def min_p_threshold(z_max: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """The smallest z that min_p keeps (−∞ where min_p is off)."""
    return torch.where(min_p > 0, z_max + log_fp32(min_p.clamp(FP32_TINY, 1.0)) + 0.0, float("-inf"))


def needed_weight(top_p: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """The weight a prefix must reach to make up ``top_p`` of ``total`` (int64, at least 1)."""
    return (top_p.to(torch.float64) * total.to(torch.float64)).ceil().to(torch.int64).clamp(min=1)


def cutoff_twin(z: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """The cut-off of each row of ``z [R, V]`` (from ``scale_logits``): the key of the last token kept, ``[R]`` int64.

    ``top_p`` and ``min_p`` are ``[R]`` fp32, ``top_k [R]`` int64; 1, 0 and 0 turn them off.
    """
    V = z.shape[1]
    rank = torch.arange(V, device=z.device)
    keys, order = sort_key(z, rank).sort(dim=1, descending=True)
    z_sorted = z.gather(1, order)
    z_max = z_sorted[:, :1].clamp(min=-FP32_MAX)
    kept = (z_sorted >= min_p_threshold(z_max, min_p[:, None])).sum(1).clamp(min=1)
    kept = torch.where(top_k > 0, torch.minimum(kept, top_k), kept)
    weights = torch.where(rank < kept[:, None], softmax_weight(z_sorted - z_max), 0)
    running = weights.cumsum(1)
    prefix = (running < needed_weight(top_p, running[:, -1])[:, None]).sum(1) + 1
    kept = torch.where(top_p < 1, torch.minimum(kept, prefix), kept)
    return keys.gather(1, kept[:, None] - 1).squeeze(1)


@jit
def scale_device(b_logits, temperature):
    """``scale_logits`` in Triton."""
    z = b_logits.to(tl.float32)
    z = tl.where(z == z, z, float("-inf"))
    z = tl.minimum(tl.div_rn(z, tl.zeros_like(z) + temperature), 3.4028234663852886e38)
    return tl.where(z == 0.0, 0.0, z)


@jit
def order_bits_device(z):
    """``order_bits`` in Triton."""
    bits = z.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@jit
def sort_key_device(z, ids):
    """``sort_key`` in Triton."""
    return (order_bits_device(z) << 32) + (4294967295 - ids.to(tl.int64))


@jit
def softmax_weight_device(distance):
    """``softmax_weight`` in Triton."""
    x = tl.maximum(distance, -30.0)
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    r = (x - n * 0.693359375) - n * -2.12194440e-4
    series = r * (1 / 5040) + 1 / 720
    series = series * r + 1 / 120
    series = series * r + 1 / 24
    series = series * r + 1 / 6
    series = series * r + 1 / 2
    series = series * r + 1.0
    series = series * r + 1.0
    power = ((n.to(tl.int32) + 167) << 23).to(tl.float32, bitcast=True)
    return (series * power).to(tl.int64)
