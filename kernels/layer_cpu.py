"""A decoder layer in compiled C, for CPUs: part by part (fused_cpu.c), or all of it in one call (layer_cpu.c)."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from redraft.kernels.attention_cpu import FusedAttention
from redraft.kernels.layer_torch import OneByOne, TorchOps
from redraft.kernels.layer_weights import LayerWeights
from redraft.kernels.linear import Linear
from redraft.kernels.tree_attention import Attention

_LINEARS = ("qkv", "output", "gate_up", "down")


class _Weights(ctypes.Structure):
    """``Weights`` of layer_cpu.c."""

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("input_norm", "qk_norm", "post_norm", *(x for one in _LINEARS for x in (one, f"{one}_bias")))
    ]


class _Shape(ctypes.Structure):
    """``Shape`` of layer_cpu.c."""

    _fields_ = [
        *((n, ctypes.c_void_p) for n in ("cos", "sin", "position", "cell", "attention", "scratch", "q")),
        *((name, ctypes.c_void_p) for name in ("narrow", "wide", "middle")),
        *((n, ctypes.c_int64) for n in ("rows", "hidden", "intermediate", "q_heads", "kv_heads", "dim")),
        *((name, ctypes.c_float) for name in ("scale", "eps")),
    ]


class FusedCpuOps(OneByOne):
    """Compiled C over CPU tensors of fp32 or bf16, with an fp32 cache."""

    def __init__(self, library: ctypes.CDLL, torch_ops: TorchOps, width: int) -> None:
        """``width``: the most elements a row of any operand has."""
        self.name = f"compiled ({Path(library._name).stem})"
        self.library, self.eps = library, torch_ops.eps
        self.cos, self.sin = torch_ops.cos.contiguous(), torch_ops.sin.contiguous()
        self.heads, self.kv_heads, self.dim = torch_ops.heads, torch_ops.kv_heads, torch_ops.cos.shape[-1]
        self.buffer = torch.empty(width)
        self.scratch = self.buffer.data_ptr()
        self.weights: dict[int, tuple[LayerWeights, _Weights]] = {}
        """Addresses of layers' weights, which are kept as long as these are."""
        self.shape: tuple[_Shape, FusedAttention, object] | None = None
        """Of the pass at hand, with its attention and the memory that it points to."""

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
        self.shape = None

    def layer(self, weights: LayerWeights, x: Tensor, kv: Tensor, attend: Attention) -> Tensor | None:
        """The whole layer [R, H] -> [R, H] in one call; None, and nothing is done, where not all of it is compiled."""
        one = self.weights.get(id(weights))
        if one is None:
            whole = x.dtype == torch.bfloat16 and all(getattr(weights, name).compiled for name in _LINEARS)
            one = self.weights[id(weights)] = weights, _addresses(weights) if whole else _Weights()
        # a subclass may do otherwise
        if not one[1].input_norm or type(attend) is not FusedAttention:
            return None
        x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        if self.shape is None or self.shape[1] is not attend:
            self.shape = self._shape(weights, x, attend)
        self.library.decoder_layer(
            ctypes.byref(one[1]),
            ctypes.byref(self.shape[0]),
            x.data_ptr(),
            kv[0].data_ptr(),
            kv[1].data_ptr(),
            out.data_ptr(),
        )
        return out

    def _shape(self, weights: LayerWeights, x: Tensor, attend: FusedAttention) -> tuple[_Shape, FusedAttention, object]:
        (rows, hidden), intermediate = x.shape, weights.down.in_features
        q = torch.empty(rows, self.heads, self.dim)
        narrow = x.new_empty(rows, max(hidden, intermediate, self.heads * self.dim))
        wide = x.new_empty(rows, max(weights.qkv.out_features, 2 * intermediate))
        middle = x.new_empty(rows, hidden)
        address = attend.prepared(self.kv_heads, self.heads // self.kv_heads, self.dim, x.dtype)
        tables = (self.cos, self.sin, self.position, self.cell)
        rooms = (self.buffer, q, narrow, wide, middle)
        shape = _Shape(
            *(table.data_ptr() for table in tables),
            address,
            *(room.data_ptr() for room in rooms),
            rows,
            hidden,
            intermediate,
            self.heads,
            self.kv_heads,
            self.dim,
            self.dim**-0.5,
            self.eps,
        )
        return shape, attend, (tables, rooms)

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


def _addresses(weights: LayerWeights) -> _Weights:
    qk_norm = weights.qk_norm
    norms = weights.input_norm.data_ptr(), None if qk_norm is None else qk_norm.data_ptr(), weights.post_norm.data_ptr()
    linears: list[Linear] = [getattr(weights, name) for name in _LINEARS]
    pairs = ((one.weight.data_ptr(), None if one.bias is None else one.bias.data_ptr()) for one in linears)
    return _Weights(*norms, *(address for pair in pairs for address in pair))


def _dtype(x: Tensor) -> int:
    return int(x.dtype == torch.bfloat16)
