"""What a layer does beside attention: norms and the products behind them, rotation and the write to the cache, SwiGLU.

``TorchOps`` is the twin: any device, any mode.  ``FusedCpuOps`` does the same in three calls of compiled C
(fused_cpu.c), because at a few rows a layer's forty small torch calls take as long as half its products (docs/log.md).
``GpuOps`` (layer_gpu.py) has norm and SwiGLU inside the products.  Each is row-invariant by itself, as far as its
products are; their bits differ from one another, so an engine keeps to one.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from redraft.kernels.fused_cpu import load_fused
from redraft.kernels.layer_cpu import FusedCpuOps
from redraft.kernels.layer_gpu import GpuOps
from redraft.kernels.layer_torch import TorchOps
from redraft.kernels.layer_weights import LayerWeights
from redraft.kernels.linear import Linear
from redraft.kernels.tree_attention import Attention
from redraft.kernels.triton_support import use_triton


class LayerOps(Protocol):
    """What the decoder asks for; H hidden size, I intermediate size, HD head size."""

    name: str
    """Which arithmetic it is, for the operator and the fingerprint."""

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """Root-mean-square norm of ``x`` [R, H] with ``weight`` [H] fp32."""

    def project(self, x: Tensor, norm: Tensor, linear: Linear) -> Tensor:
        """``linear`` of the norm of ``x`` [R, H] with weight ``norm`` [H] fp32."""

    def gate(self, x: Tensor, norm: Tensor, gate_up: Linear) -> Tensor:
        """silu(gate) * up of ``gate_up``'s halves, of the norm of ``x`` [R, H] with weight ``norm`` -> [R, I]."""

    def turn(self, position: Tensor, cell: Tensor) -> None:
        """Prepare for a pass of rows at ``position`` [R], written to ``cell`` [R]."""

    def attention_inputs(self, x: Tensor, norm: Tensor, qkv: Linear, qk_norm: Tensor | None, kv: Tensor) -> Tensor:
        """``rope_and_cache`` of ``project`` with ``qkv``."""

    def rope_and_cache(self, qkv: Tensor, qk_norm: Tensor | None, kv: Tensor) -> Tensor:
        """Norm (``qk_norm`` [HQ + HKV, HD] fp32 or None) and rotate queries and keys of ``qkv`` [R, (HQ + 2 HKV) HD].

        Keys and values go to ``kv`` [2, cells, HKV, HD]; the queries come back, times 1 / sqrt(HD), [R, HQ, HD] fp32.
        """

    def cache_layers(self, made: Tensor, k_norm: Tensor, kv: Tensor) -> None:
        """``rope_and_cache`` of ``made`` [R, L, 2 HKV HD] without queries, to L layers' ``kv`` [L, 2, cells, HKV, HD].

        ``k_norm``: [L, HKV, HD] fp32.
        """


def run_layer(ops: LayerOps, weights: LayerWeights, x: Tensor, kv: Tensor, attend: Attention) -> Tensor:
    """A decoder layer over the residual stream ``x`` [R, H] -> [R, H]; ``kv`` [2, cells, HKV, HD] is written.

    ``ops.turn`` has been called for the pass.
    """
    if isinstance(ops, FusedCpuOps):
        whole = ops.layer(weights, x, kv, attend)
        if whole is not None:
            return whole
    q = ops.attention_inputs(x, weights.input_norm, weights.qkv, weights.qk_norm, kv)
    x = weights.output(attend(q, kv[0], kv[1], x.dtype).flatten(1), x)
    return weights.down(ops.gate(x, weights.post_norm, weights.gate_up), x)


def layer_ops(
    cos: Tensor, sin: Tensor, *, heads: int, kv_heads: int, eps: float, dtype: torch.dtype, width: int
) -> LayerOps:
    """Triton's on a GPU, the compiled ones where there are a CPU and a C compiler, torch's otherwise."""
    if use_triton(cos, sin):
        return GpuOps(cos, sin, heads, eps)
    plain = TorchOps(cos, sin, heads, kv_heads, eps)
    if cos.device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return plain
    library = load_fused()
    return plain if library is None else FusedCpuOps(library, plain, width)
