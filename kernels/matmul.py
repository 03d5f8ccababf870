"""Matrix product with a fixed weight whose rows get the same bits whatever rows stand beside them.

``y = (prologue(x) @ weight.T + bias + residual)`` with fp32 sums and one rounding at the end.  Prologue: none, or the
root-mean-square norm of ``x``, rounded to ``x``'s dtype as ``rms_norm`` rounds it.  ``gated``: the weight's first half
makes a gate, the second what it scales, and the result is ``silu(gate) * up``, both still in fp32.

A row's bits follow from the row and the weight alone, because everything between them is fixed by the weight's shape:
- K is summed block after block within a part, and the parts are added in order, starting from 0.
- Rows go through ``tl.dot`` in tiles of 32, one tile or two a program; more rows are more programs, so every row meets
  the same instruction (mma.sync m16n8k16; 64 rows would be wgmma) in the same layout.  What the compiler makes of
  both variants is compared ahead of time (tests/kernels/test_compile_matmul.py), on a device byte for byte
  (benchmarks/row_checks.py).
- The norm's squares are summed over all of K in every program, each row by one warp in one order.  Beyond 64 rows,
  where every program's reading them once more would count, the norm has a launch of its own, which sums and rounds
  alike.
- Up to 64 rows each part of K has its own program.  It leaves its sums in a workspace and draws a ticket; the last one
  adds up.  Beyond 64 rows one program goes through the parts in turn.  The sums and their order are the same.

Nothing is rounded between parts, no float is added atomically, products and sums stay apart but within ``tl.dot`` (the
compiler might fuse them in one variant only), and nothing is tuned at run time (matmul_plan.py).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from redraft.kernels.dependent_launch import launch_options
from redraft.kernels.matmul_device import product
from redraft.kernels.matmul_plan import ROWS, TILES, Plan, plan
from redraft.kernels.rms_norm import rms_norm_kernel, rms_norm_twin
from redraft.kernels.triton_support import check_tensor

PARTIALS = 2**22
"""Fp32 numbers of the workspace; 96 programs twice over take 2 ** 20.6."""
TICKETS = 2**10
MAX_REGISTERS = 255
"""All there are: two programs of 128 threads then fill a multiprocessor's, as two do its shared memory."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NO_HEADS: Mapping[str, Any] = {
    **dict.fromkeys(("p_cos", "p_sin", "p_qk_norm", "p_position", "p_cell", "p_kv")),
    **{"cells": 0, "HQ": 0, "HKV": 0, "scale": 0.0, "HALF": 0, "QK_NORM": False},
}
"""The kernel's arguments that only ``qkv.py`` gives."""


def matmul_twin(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
) -> Tensor:
    """``matmul_kernel`` in plain torch, any device; its bits may depend on the rows beside a row."""
    y = (x if norm is None else rms_norm_twin(x, norm, eps)).float() @ weight.float().T
    if bias is not None:
        y = y + bias.float()
    if gated:
        gate, up = y.chunk(2, -1)
        y = functional.silu(gate) * up
    if residual is not None:
        y = y + residual.float()
    return y.to(x.dtype)


@functools.cache
def workspace(device: torch.device) -> tuple[Tensor, Tensor]:
    """Partial sums and tickets that all products on ``device`` share, one after the other on one stream.

    A launch leaves every ticket at 0.  The memory never moves, so graphs may hold its address.
    """
    # whoever comes first, others may come outside of inference mode
    with torch.inference_mode(False):
        return torch.empty(PARTIALS, device=device), torch.zeros(TICKETS, dtype=torch.int32, device=device)


def matmul_kernel(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
) -> Tensor:
    """``prologue(x) @ weight.T`` and its epilogue in one launch; in two with a norm of more than 64 rows.

    Args:
        x: [R, K] bf16, fp16 or fp32; ``weight``, ``bias`` and ``residual`` have its dtype.
        weight: [N, K]; gated [2 N, K], the gate first.
        bias: [N], gated [2 N]; or None.
        residual: [R, N] added before rounding; or None.
        norm: [K] fp32, weight of the norm of ``x``; None for no norm.
        eps: the norm's.
        gated: ``silu(gate) * up`` of the product's halves.

    Returns [R, N].  Raises ``ValueError`` for arguments that do not fit one another.
    """
    check_tensor("x", x, 2, *DTYPES)
    check_tensor("weight", weight, 2, x.dtype, like=x)
    R, K = x.shape
    width = weight.shape[0]
    N = width // 2 if gated else width
    if weight.shape[1] != K or (gated and width % 2):
        raise ValueError(f"weight is {list(weight.shape)}, x is {list(x.shape)}: they do not multiply")
    for name, tensor, dtype, shape in (
        ("bias", bias, x.dtype, (width,)),
        ("residual", residual, x.dtype, (R, N)),
        ("norm", norm, torch.float32, (K,)),
    ):
        if tensor is not None:
            check_tensor(name, tensor, len(shape), dtype, like=x)
            if tensor.shape != shape:
                raise ValueError(f"{name} must be {list(shape)}, but is {list(tensor.shape)}")
    if norm is not None and R > TILES * ROWS:
        x, norm = rms_norm_kernel(x, norm, eps), None
    y = torch.empty(R, N, dtype=x.dtype, device=x.device)
    if y.numel():
        launch(x, weight, y, N, plan(N, K, gated, x.element_size()), bias, residual, norm, eps, gated)
    return y


def launch(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    N: int,
    how: Plan,
    bias: Tensor | None,
    residual: Tensor | None,
    norm: Tensor | None,
    eps: float,
    gated: bool,
    heads: Mapping[str, Any] = NO_HEADS,
) -> None:
    """Launch ``product``, of which ``N`` columns are cut up as ``how`` says; ``heads`` are its arguments for heads."""
    R, K = x.shape
    partials, tickets = workspace(x.device)
    # beside two tiles whose sums are held to the end there are no registers for heads' norms
    tiles = 1 if R <= ROWS or (R > TILES * ROWS and heads["QK_NORM"]) else TILES
    groups, blocks = -(-R // (tiles * ROWS)), how.blocks(N)
    by_ticket = how.parts > 1 and groups == 1
    product[(how.parts if by_ticket else groups, blocks)](
        x,
        weight,
        norm,
        bias,
        residual,
        y,
        partials,
        tickets,
        R=R,
        N=N,
        K=K,
        part=how.part,
        eps=eps,
        **heads,
        NORM=norm is not None,
        GATED=gated,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        EVEN=K % how.block_k == 0,
        PARTS=how.parts,
        TICKET=by_ticket,
        TILES=tiles,
        ROWS=ROWS,
        BLOCK_N=how.block_n,
        BLOCK_K=how.block_k,
        **launch_options(x.device),
        num_warps=how.warps,
        num_stages=how.stages(tiles),
        maxnreg=MAX_REGISTERS,
        enable_fp_fusion=False,
    )
