"""Root-mean-square norm (arXiv 1910.07467): ``x / sqrt(mean(x^2) + eps) * weight``, computed in fp32 per row."""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from redraft.kernels.triton_support import CompileCase, check_tensor, jit, tl, use_triton

_BLOCK = 1024
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def rms_norm_twin(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``rms_norm`` in plain torch."""
    return functional.rms_norm(x.float(), x.shape[-1:], weight, eps).to(x.dtype)


@jit
def inverse_rms_device(p_x, m_row, K, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """1 / sqrt(mean(x^2) + eps) of ``ROWS`` rows [., K] from ``p_x``, those in ``m_row`` [ROWS]: [ROWS] fp32.

    Squares are summed lane by lane, ``BLOCK`` of K at a time, then the lanes: an order that rows do not change.
    """
    o_k = tl.arange(0, BLOCK)
    p_rows = p_x + tl.arange(0, ROWS)[:, None] * K + o_k[None, :]
    b_square = tl.zeros([ROWS, BLOCK], tl.float32)
    # without stages the loads would wait for one another
    for k in tl.range(0, K, BLOCK, num_stages=5):
        b_x = tl.load(p_rows + k, mask=m_row[:, None] & (o_k < K - k)[None, :], other=0.0).to(tl.float32)
        b_square += b_x * b_x
    return tl.rsqrt(tl.sum(b_square, 1) / K + eps)


@jit
def _norm_rows(p_x, p_weight, p_out, K, eps, BLOCK: tl.constexpr):
    """One program per row: ``p_x``, ``p_out`` [R, K], ``p_weight`` [K] fp32."""
    o_row = tl.program_id(0).to(tl.int64) * K
    p_row = p_x + o_row
    o_k = tl.arange(0, BLOCK)
    b_scale = inverse_rms_device(p_row, tl.full([1], 1, tl.int1), K, eps, 1, BLOCK)
    for k in range(0, K, BLOCK):
        m_k = o_k < K - k
        b_x = tl.load(p_row + k + o_k, mask=m_k, other=0.0).to(tl.float32)
        b_y = b_x * b_scale * tl.load(p_weight + k + o_k, mask=m_k, other=0.0)
        tl.store(p_out + o_row + k + o_k, b_y.to(p_out.dtype.element_ty), mask=m_k)


def rms_norm_kernel(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``rms_norm`` of ``x`` [R, H] in one launch."""
    check_tensor("x", x, 2, *DTYPES)
    check_tensor("weight", weight, 1, torch.float32, like=x)
    if weight.shape[0] != x.shape[1]:
        raise ValueError(f"weight is {list(weight.shape)}, x is {list(x.shape)}: they must agree")
    out = torch.empty_like(x)
    if x.numel():
        _norm_rows[(x.shape[0],)](x, weight, out, x.shape[1], eps, BLOCK=_BLOCK)
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x`` [R, H], ``weight`` [H] fp32 -> [R, H] in ``x``'s dtype."""
    return rms_norm_kernel(x, weight, eps) if use_triton(x, weight) else rms_norm_twin(x, weight, eps)


COMPILE_CASES = (
    CompileCase(
        _norm_rows,
        {"p_x": "*bf16", "p_weight": "*fp32", "p_out": "*bf16", "K": "i32", "eps": "fp32"},
        {"BLOCK": _BLOCK},
        divisible=("K",),
    ),
)
