"""From the residual stream to what attention reads, in one launch: norm, projections, norms of heads, rotation, cells.

It is ``matmul.py``'s product, with its bits and its reasons, in which a program makes columns of both halves of a head
and does with them what ``rope_cache.py`` does; ``layer_torch.TorchOps.attention_inputs`` is the twin.
"""

from __future__ import annotations

import torch
from torch import Tensor

from redraft.kernels.matmul import DTYPES, launch
from redraft.kernels.matmul_plan import ROWS, TILES, Plan, plan
from redraft.kernels.rms_norm import rms_norm_kernel
from redraft.kernels.rope_cache import check_heads
from redraft.kernels.triton_support import check_tensor

LEAST, MOST = 16, 64
"""Columns of a head's half that one program makes: ``tl.dot``'s least, and what registers hold of both halves."""


def heads_plan(pairs: int, inner: int, half: int, normed: bool, itemsize: int) -> Plan | None:
    """How the projections of ``pairs`` pairs of columns are cut up; None where they must be made without their heads.

    Heads with a norm are one program's each, so that it can add up their squares.
    """
    least = half if normed else LEAST
    if half < LEAST or half & (half - 1) or least > MOST or (normed and itemsize == 4):
        return None
    return plan(pairs, inner, True, itemsize, min(half, MOST), least)


def qkv_kernel(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Tensor,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    qk_norm: Tensor | None,
    position: Tensor,
    cell: Tensor,
    kv: Tensor,
    heads: int,
) -> Tensor | None:
    """Project the norm of ``x``, rotate, write keys and values to their cells, return the queries.

    Args:
        x: [R, K] bf16, fp16 or fp32; ``weight`` [(HQ + 2 HKV) HD, K] and ``bias`` have its dtype.
        norm: [K] fp32, weight of the norm of ``x``.
        eps: of this norm and the heads'.
        cos, sin, qk_norm, position, cell, kv, heads: as ``rope_cache_kernel`` has them.

    Returns [R, HQ, HD] fp32, times 1 / sqrt(HD); or None, and nothing is done, where ``heads_plan`` has no plan.
    Raises ``ValueError`` for arguments that do not fit one another.
    """
    check_tensor("x", x, 2, *DTYPES)
    check_tensor("weight", weight, 2, x.dtype, like=x)
    (R, K), width = x.shape, weight.shape[0]
    kv_heads, dim = check_heads(R, width, cos, sin, qk_norm, position, cell, kv, heads)
    for name, tensor, dtype, shape in (("bias", bias, x.dtype, (width,)), ("norm", norm, torch.float32, (K,))):
        if tensor is not None:
            check_tensor(name, tensor, 1, dtype, like=x)
            if tensor.shape != shape:
                raise ValueError(f"{name} must be {list(shape)}, but is {list(tensor.shape)}")
    if weight.shape[1] != K:
        raise ValueError(f"weight is {list(weight.shape)}, x is {list(x.shape)}: they do not multiply")
    how = heads_plan(width // 2, K, dim // 2, qk_norm is not None, x.element_size())
    if how is None:
        return None
    q = torch.empty(R, heads, dim, device=x.device)
    if not R:
        return q
    within: Tensor | None = norm
    if R > TILES * ROWS:
        x, within = rms_norm_kernel(x, norm, eps), None
    arguments = {
        "p_cos": cos,
        "p_sin": sin,
        "p_qk_norm": qk_norm,
        "p_position": position,
        "p_cell": cell,
        "p_kv": kv,
        "cells": kv.shape[1],
        "HQ": heads,
        "HKV": kv_heads,
        "scale": dim**-0.5,
        "HALF": dim // 2,
        "QK_NORM": qk_norm is not None,
    }
    launch(x, weight, q, width // 2, how, bias, None, within, eps, False, arguments)
    return q
