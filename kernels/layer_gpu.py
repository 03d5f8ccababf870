"""A decoder layer in four launches beside attention's: what ``LayerOps`` asks for, on a GPU.

norm, queries, keys and values, their rotation and cells | *attention* | output and residual | norm, gate and up,
SwiGLU | down and residual.  The second and the last product are ``Linear``'s own.  In passes of more than 64 rows both
norms have launches of their own, with the same bits; so has rotation where qkv.py has no plan for the size of heads.
"""

from __future__ import annotations

from torch import Tensor

from redraft.kernels.linear import Linear
from redraft.kernels.matmul import matmul_kernel
from redraft.kernels.qkv import qkv_kernel
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

    def attention_inputs(self, x: Tensor, norm: Tensor, qkv: Linear, qk_norm: Tensor | None, kv: Tensor) -> Tensor:
        q = qkv_kernel(
            x.contiguous(), qkv.weight, qkv.bias, norm, self.eps,
            self.cos, self.sin, qk_norm, self.position, self.cell, kv, self.heads,
        )  # fmt: skip
        return self.rope_and_cache(self.project(x, norm, qkv), qk_norm, kv) if q is None else q

    def rope_and_cache(self, qkv: Tensor, qk_norm: Tensor | None, kv: Tensor) -> Tensor:
        return rope_cache_kernel(qkv, self.cos, self.sin, qk_norm, self.position, self.cell, kv, self.heads, self.eps)

    def cache_layers(self, made: Tensor, k_norm: Tensor, kv: Tensor) -> None:
        rope_cache_kernel(made, self.cos, self.sin, k_norm, self.position, self.cell, kv, 0, self.eps)
