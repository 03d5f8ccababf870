"""Root-mean-square norm (arXiv 1910.07467): ``x / sqrt(mean(x^2) + eps) * weight``, computed in fp32 per row."""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from redraft.kernels.dependent_launch import launch_options, wait_device
from redraft.kernels.triton_support import CompileCase, check_tensor, jit, tl, use_triton

_ROWS, _BLOCK = 4, 512
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def rms_norm_twin(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``rms_norm`` in plain torch."""
    return functional.rms_norm(x.float(), x.shape[-1:], weight, eps).to(x.dtype)


@jit
def inverse_rms_device(p_x, m_row, K, eps, ROWS: tl.constexpr):
    """1 / sqrt(mean(x^2) + eps) of ``ROWS`` rows [., K] from ``p_x``, those in ``m_row`` [ROWS]: [ROWS] fp32.

    Squares are summed lane by lane, 512 bytes of a row at a time, then the lanes: with four warps and at least four
    rows a row belongs to one warp, and is added up in the same order in every kernel.
    """
    BLOCK: tl.constexpr = 4096 // p_x.dtype.element_ty.primitive_bitwidth
    o_k = tl.arange(0, BLOCK)
    p_rows = p_x + tl.arange(0, ROWS)[:, None] * K + o_k[None, :]
    b_square = tl.zeros([ROWS, BLOCK], tl.float32)
    # without stages the loads would wait for one another
    for k in tl.range(0, K, BLOCK, num_stages=5):
        b_x = tl.load(p_rows + k, mask=m_row[:, None] & (o_k < K - k)[None, :], other=0.0).to(tl.float32)
        b_square += b_x * b_x
    return tl.rsqrt(tl.sum(b_square, 1) / K + eps)


# a row count of 1, or of 16, would be compiled apart
@jit(do_not_specialize=["R"])
def _norm_rows(
    p_x, p_weight, p_out, R, K, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr
):  # fmt: skip
    """One program per ``ROWS`` rows: ``p_x``, ``p_out`` [R, K], ``p_weight`` [K] fp32."""
    wait_device(DEPENDENT)
    row = tl.program_id(0).to(tl.int64) * ROWS
    o_row, o_k = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    m_row = o_row < R - row
    b_scale = inverse_rms_device(p_x + row * K, m_row, K, eps, ROWS)
    o_x = row * K + o_row[:, None] * K + o_k[None, :]
    for k in tl.range(0, K, BLOCK, num_stages=3):
        m_k = o_k < K - k
        m_x = m_row[:, None] & m_k[None, :]
        b_x = tl.load(p_x + o_x + k, mask=m_x, other=0.0).to(tl.float32)
        b_y = b_x * b_scale[:, None] * tl.load(p_weight + k + o_k, mask=m_k, other=0.0)[None, :]
        tl.store(p_out + o_x + k, b_y.to(p_out.dtype.element_ty), mask=m_x)


def rms_norm_kernel(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``rms_norm`` of ``x`` [R, H] in one launch; its bits are those of a norm inside ``matmul_kernel``."""
    check_tensor("x", x, 2, *DTYPES)
    check_tensor("weight", weight, 1, torch.float32, like=x)
    if weight.shape[0] != x.shape[1]:
        raise ValueError(f"weight is {list(weight.shape)}, x is {list(x.shape)}: they must agree")
    out = torch.empty_like(x)
    if x.numel():
        (R, K), grid = x.shape, (-(-x.shape[0] // _ROWS),)
        # fused, products and sums might be so in one kernel only
        _norm_rows[grid](
            x, weight, out, R, K, eps, ROWS=_ROWS, BLOCK=_BLOCK, **launch_options(x.device),
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x`` [R, H], ``weight`` [H] fp32 -> [R, H] in ``x``'s dtype."""
    return rms_norm_kernel(x, weight, eps) if use_triton(x, weight) else rms_norm_twin(x, weight, eps)


COMPILE_CASES = tuple(
    CompileCase(
        _norm_rows,
        {"p_x": dtype, "p_weight": "*fp32", "p_out": dtype, "R": "i32", "K": "i32", "eps": "fp32"},
        {"ROWS": _ROWS, "BLOCK": _BLOCK, "DEPENDENT": False},
        enable_fp_fusion=False,
        divisible=("K",),
    )
    for dtype in ("*bf16", "*fp16", "*fp32")
)
