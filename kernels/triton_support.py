"""What every kernel module shares: Triton if it is there, the choice of path, checks of arguments, compile cases.

Triton is optional.  Kernel modules import ``jit`` and ``tl`` from here; without Triton the decorated functions stay
plain functions that nobody calls, so the torch twins and CPU paths work on any platform.

Three names per op ``x``: ``x_twin`` (plain torch: fixed output shapes, no data-dependent op, runs under
FakeTensorMode), ``x_kernel`` (checks what the Triton kernel assumes, then launches it) and ``x`` (the kernel for CUDA
tensors, the CPU path otherwise: the twin or, for ops over trees, ``x_compiled`` of trees_cpu.py where that can).  With
``TRITON_INTERPRET=1`` in the environment before Triton's first import, ``x_kernel`` takes CPU tensors and Triton
interprets the kernel; ``x`` still takes the CPU path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


def _leave(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
    """In place of ``triton.jit``, with or without options, where there is no Triton, so nobody calls the kernel."""
    return function or _leave


jit: Callable[..., Any]
try:
    import triton
    import triton.language as tl
except ImportError:
    HAS_TRITON = INTERPRETED = False
    tl, jit = None, _leave
else:
    HAS_TRITON = True
    INTERPRETED = bool(triton.knobs.runtime.interpret)
    jit = triton.jit

__all__ = ["HAS_TRITON", "INTERPRETED", "CompileCase", "check_tensor", "jit", "next_power_of_2", "tl", "use_triton"]


@dataclass(frozen=True)
class CompileCase:
    """One specialisation of a kernel that must compile for every supported architecture without spilling registers.

    A kernel module lists its cases in ``COMPILE_CASES``; ``redraft.kernels.aot`` compiles them without a GPU.
    """

    kernel: Any
    """The jitted function."""
    signature: Mapping[str, str]
    """Triton's type of every argument that is not a constexpr, e.g. ``{"p_x": "*bf16", "V": "i32"}``."""
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3
    maxnreg: int | None = None
    """Registers a thread may take; without it ptxas may spill a few to fit another program in."""
    divisible: tuple[str, ...] = ()
    """Integers that are multiples of 16 at launch, which Triton specialises on."""
    enable_fp_fusion: bool = True
    """False keeps products and sums apart (no fused multiply-add), as the launch of a bit-exact kernel must."""
    least_capability: int = 0
    """Of architectures it is for, as ``aot.CAPABILITIES`` has them."""


def use_triton(*tensors: torch.Tensor) -> bool:
    """Whether an op takes the Triton kernel: there is Triton and every tensor is on a CUDA device."""
    return HAS_TRITON and all(tensor.is_cuda for tensor in tensors)


def check_tensor(
    name: str, tensor: torch.Tensor, rank: int, *dtypes: torch.dtype, like: torch.Tensor | None = None
) -> None:
    """Raise ``ValueError`` unless a kernel may be launched on ``tensor``.

    It must have ``rank`` dimensions and one of ``dtypes``, be contiguous, be on ``like``'s device if given, and on a
    CUDA device unless Triton interprets.
    """
    if tensor.dim() != rank:
        raise ValueError(f"{name} must have {rank} dimensions, but its shape is {list(tensor.shape)}")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} must be {' or '.join(str(dtype) for dtype in dtypes)}, but is {tensor.dtype}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, but its strides are {list(tensor.stride())}")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, but the other arguments are on {like.device}")
    if not tensor.is_cuda and not INTERPRETED:
        raise ValueError(f"{name} is on {tensor.device}; kernels take CUDA tensors, or TRITON_INTERPRET=1 must be set")


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least ``n``, for block sizes (1 for ``n`` ≤ 1)."""
    return 1 << max(n - 1, 0).bit_length()
