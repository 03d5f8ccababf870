"""bf16 matrix products in compiled C (linear_cpu.c), for CPUs with AVX512-BF16 and without tiles (AMX).

A weight is read once, from end to end, at memory's speed up to some 12 rows, and a row's bits follow from the row and
the weight alone, also where it is alone.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from redraft.kernels.fused_cpu import load_fused

COLUMNS = 32
"""Outputs of a block, as linear_cpu.c has it."""


@cache
def _library() -> ctypes.CDLL | None:
    library = load_fused()
    return library if library is not None and library.linear_is_here() else None


def can_multiply(weight: Tensor) -> bool:
    """Whether there is compiled code for ``weight`` [N, K]: bf16 on such a CPU, with K even."""
    fits = weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and weight.shape[1] % 2 == 0
    return fits and _library() is not None


def pack(weight: Tensor) -> Tensor:
    """``weight`` [N, K], which ``can_multiply``, as the products want it: [ceil(N / 32), K / 2, 32, 2]."""
    library, weight = _library(), weight.contiguous()
    assert library is not None
    outputs, inner = weight.shape
    packed = weight.new_empty(-(-outputs // COLUMNS), inner // 2, COLUMNS, 2)
    library.linear_pack(weight.data_ptr(), packed.data_ptr(), outputs, inner)
    return packed


def multiply(x: Tensor, packed: Tensor, outputs: int, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """``x`` [R, K] times what ``pack`` made, plus ``bias`` [N] and ``residual`` [R, N] -> [R, N]; all contiguous bf16.

    Sums are fp32 and rounded once.
    """
    library = _library()
    assert library is not None
    rows, inner = x.shape
    y = x.new_empty(rows, outputs)
    library.linear_product(
        x.data_ptr(),
        packed.data_ptr(),
        None if bias is None else bias.data_ptr(),
        None if residual is None else residual.data_ptr(),
        y.data_ptr(),
        rows,
        outputs,
        inner,
    )
    return y
