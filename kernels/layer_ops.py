"""What a layer does beside attention: norms and the products behind them, rotation and the write to the cache, SwiGLU.

``TorchOps`` is the twin: any device, any mode.  ``FusedCpuOps`` does the same in three calls of compiled C
(fused_cpu.c), because at a few rows a layer's forty small torch calls take as long as half its products (docs/log.md).
``GpuOps`` (layer_gpu.py) has norm and SwiGLU inside the products.  Each is row-invariant by itself, as far as its
products are; their bits differ from one another, so an engine keeps to one.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from redraft.kernels.fused_cpu import load_fused
from redraft.kernels.layer_gpu import GpuOps
from redraft.kernels.linear import Linear
from redraft.kernels.rms_norm import rms_norm_twin
from redraft.kernels.rope import apply_rope
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


class _OneByOne(ABC):
    """Norm, product and what follows one after the other."""

    @abstractmethod
    def norm(self, x: Tensor, weight: Tensor) -> Tensor: ...

    @abstractmethod
    def swiglu(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up of ``gate_up`` [R, 2 I] -> [R, I]."""

    @abstractmethod
    def rope_and_cache(self, qkv: Tensor, qk_norm: Tensor | None, kv: Tensor) -> Tensor: ...

    def project(self, x: Tensor, norm: Tensor, linear: Linear) -> Tensor:
        return linear(self.norm(x, norm))

    def gate(self, x: Tensor, norm: Tensor, gate_up: Linear) -> Tensor:
        return self.swiglu(gate_up(self.norm(x, norm)))

    def attention_inputs(self, x: Tensor, norm: Tensor, qkv: Linear, qk_norm: Tensor | None, kv: Tensor) -> Tensor:
        return self.rope_and_cache(self.project(x, norm, qkv), qk_norm, kv)

    def cache_layers(self, made: Tensor, k_norm: Tensor, kv: Tensor) -> None:
        for number, one in enumerate(made.unbind(1)):
            self.rope_and_cache(one, k_norm[number], kv[number])


class TorchOps(_OneByOne):
    """Plain torch."""

    name = "torch"

    def __init__(self, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, eps: float) -> None:
        """``cos``, ``sin`` [positions, 1, HD] of ``rope.rope_table``."""
        self.cos, self.sin, self.heads, self.kv_heads, self.eps = cos, sin, heads, kv_heads, eps
        scales = [cos.shape[-1] ** -0.5] * heads + [1.0] * kv_heads
        self.head_scale = torch.tensor(scales, device=cos.device).unsqueeze(1)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm_twin(x, weight, self.eps)

    def turn(self, position: Tensor, cell: Tensor) -> None:
        self.cell = cell
        # [R, HQ + HKV, HD]: attention's 1 / sqrt(HD) rides on the queries' rotation
        self.row_cos = self.cos.index_select(0, position) * self.head_scale
        self.row_sin = self.sin.index_select(0, position) * self.head_scale

    def rope_and_cache(self, qkv: Tensor, qk_norm: Tensor | None, kv: Tensor) -> Tensor:
        turned = self.heads + self.kv_heads
        split = qkv.float().view(qkv.shape[0], turned + self.kv_heads, -1)
        qk = split[:, :turned]
        if qk_norm is not None:
            qk = rms_norm_twin(qk, None, self.eps) * qk_norm
        qk = apply_rope(qk, self.row_cos, self.row_sin)
        kv[0].index_copy_(0, self.cell, qk[:, self.heads :].to(kv.dtype))
        kv[1].index_copy_(0, self.cell, split[:, turned:].to(kv.dtype))
        return qk[:, : self.heads]

    def swiglu(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return functional.silu(gate).mul_(up)


class FusedCpuOps(_OneByOne):
    """Compiled C over CPU tensors of fp32 or bf16, with an fp32 cache."""

    def __init__(self, library: ctypes.CDLL, torch_ops: TorchOps, width: int) -> None:
        """``width``: the most elements a row of any operand has."""
        self.name = f"compiled ({Path(library._name).stem})"
        self.library, self.eps = library, torch_ops.eps
        self.cos, self.sin = torch_ops.cos.contiguous(), torch_ops.sin.contiguous()
        self.heads, self.kv_heads, self.dim = torch_ops.heads, torch_ops.kv_heads, torch_ops.cos.shape[-1]
        self.buffer = torch.empty(width)
        self.scratch = self.buffer.data_ptr()

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        rows, n = x.shape
        self.library.rms_norm(
            x.data_ptr(), weight.data_ptr(), out.data_ptr(), self.scratch, rows, n, self.eps, _dtype(x)
        )
        return out

    def turn(self, position: Tensor, cell: Tensor) -> None:
        # kept, so that the memory behind the addresses lives as long as they are used
        self.position, self.cell = position.contiguous(), cell.contiguous()

    def rope_and_cache(self, qkv: Tensor, qk_norm: Tensor | None, kv: Tensor) -> Tensor:
        qkv = qkv.contiguous()
        rows = qkv.shape[0]
        q = torch.empty(rows, self.heads, self.dim)
        self.library.rope_and_cache(
            qkv.data_ptr(),
            self.cos.data_ptr(),
            self.sin.data_ptr(),
            0 if qk_norm is None else qk_norm.data_ptr(),
            self.position.data_ptr(),
            self.cell.data_ptr(),
            q.data_ptr(),
            kv[0].data_ptr(),
            kv[1].data_ptr(),
            self.scratch,
            rows,
            self.heads,
            self.kv_heads,
            self.dim,
            self.dim**-0.5,
            self.eps,
            _dtype(qkv),
        )
        return q

    def swiglu(self, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        rows, double = gate_up.shape
        out = gate_up.new_empty(rows, double // 2)
        self.library.swiglu(gate_up.data_ptr(), out.data_ptr(), self.scratch, rows, double // 2, _dtype(gate_up))
        return out


def _dtype(x: Tensor) -> int:
    return int(x.dtype == torch.bfloat16)


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
