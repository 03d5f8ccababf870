"""What a layer does beside attention, in plain torch: any device, any mode; the twin of layer_ops.py's other ways."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from redraft.kernels.linear import Linear
from redraft.kernels.rms_norm import rms_norm_twin
from redraft.kernels.rope import apply_rope


class OneByOne(ABC):
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


class TorchOps(OneByOne):
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
