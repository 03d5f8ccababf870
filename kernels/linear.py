"""Matrix product with a fixed weight, row-invariant: a row gets the same bits whatever rows stand beside it.

On a GPU that is ``matmul.py``'s kernel, by construction.

On a CPU with AVX512-BF16 it is ``linear_cpu.py``'s, for bf16 and by construction, too.

On others the weight is laid out once for oneDNN's blocked kernels.  At 1 to 6 rows of bf16 this takes 0.7 of the plain
layout's time, and from 2 rows on the products were byte-equal for every row count tried, in bf16 and in fp32, where
torch's own product depends on the row count (docs/log.md).  A single row may differ, hence ``MIN_ROWS``.  What holds on
the machine at hand is for the start-up self-check to say (server/engine/self_check.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from redraft.kernels.linear_cpu import can_multiply, multiply, pack
from redraft.kernels.matmul import matmul_kernel, workspace
from redraft.kernels.triton_support import use_triton

MIN_ROWS = 2
"""Passes have at least this many rows: one row alone takes another code path on a CPU, with other bits."""

ROWS_HINT = 8  # the layout oneDNN picks did not depend on it between 1 and 64


def prepacks(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights of this kind get a layout of their own on a CPU."""
    here: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return here and device.type == "cpu" and dtype in (torch.bfloat16, torch.float32)


class Linear:
    """``x @ weight.T + bias`` with an optional residual added before rounding.

    ``weight`` [N, K] and ``bias`` [N] share a dtype; ``x`` is [R, K], the result [R, N], both of that dtype.
    """

    __slots__ = ("bias", "compiled", "in_features", "out_features", "packed", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self.packed = prepacks(weight.device, weight.dtype)
        self.compiled = self.packed and can_multiply(weight)
        if self.compiled:
            self.weight = pack(weight)
        elif self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS_HINT)
        else:
            self.weight = weight.contiguous()
        self.bias = bias
        if use_triton(weight):
            # now, and not while a graph is captured, whose own memory it would be
            workspace(weight.device)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[R, K] -> [R, N]; ``residual`` [R, N] is added in fp32 where the backend fuses it, else after rounding."""
        if self.compiled:
            residual = None if residual is None else residual.contiguous()
            return multiply(x.contiguous(), self.weight, self.out_features, self.bias, residual)
        if self.packed:
            ops, x = torch.ops.mkldnn, x.contiguous()  # other strides take other code, with other bits
            if residual is None:
                return ops._linear_pointwise(x, self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]
            return ops._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")  # type: ignore[no-any-return]
        if use_triton(x, self.weight):
            residual = None if residual is None else residual.contiguous()
            return matmul_kernel(x.contiguous(), self.weight, self.bias, residual)
        out = torch.nn.functional.linear(x, self.weight, self.bias)
        return out if residual is None else out + residual
