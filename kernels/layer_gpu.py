"""A decoder layer in five launches beside attention's: what ``LayerOps`` asks for, on a GPU.

norm, queries, keys and values | norms of heads, rotation, cells | *attention* | output and residual | norm, gate and
up, SwiGLU | down and residual.  The second and fourth product are ``Linear``'s own.  In passes of more than 64 rows
the two norms have launches of their own, with the same bits.
"""

from __future__ import annotations

from torch import Tensor

from redraft.kernels.linear import Linear
from redraft.kernels.matmul import matmul_kernel
from redraft.kernels.rms_norm import rms_norm_kernel
from redraft.kernels.rope_cache import rope_cache_kernel


class GpuOps:
    """Triton kernels over CUDA tensors; in tests the interpreter's over a CPU's."""

    name = "triton"

    def __init__(self, cos: Tensor, sin: Tensor, heads: int, eps: float) -> None:
        """``cos``, ``sin`` [positions, 1, HD] of ``rope.rope_table``."""
        self.cos, self.sin, self.heads, self.eps = cos.contiguous(), sin.contiguous(), heads, eps

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm_kernel(x.contiguous(), weight, self.eps)

    def project(self, x: Tensor, norm: Tensor, linear: Linear) -> Tensor:
        return matmul_kernel(x.contiguous(), linear.weight, linear.bias, norm=norm, eps=self.eps)

    def gate(self, x: Tensor, norm: Tensor, gate_up: Linear) -> Tensor:
        return matmul_kernel(x.contiguous(), gate_up.weight, gate_up.bias, norm=norm, eps=self.eps, gated=True)

    def turn(self, position: Tensor, cell: Tensor) -> None:
        self.position, self.cell = position.contiguous(), cell.contiguous()

    def rope_and_cache(self, qkv: Tensor, qk_norm: Tensor | None, kv: Tensor) -> Tensor:
        return rope_cache_kernel(qkv, self.cos, self.sin, qk_norm, self.position, self.cell, kv, self.heads, self.eps)
