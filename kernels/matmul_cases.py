"""The variants of ``matmul.py``'s kernel that must compile for every architecture (aot.py).

Weights come in groups, each with one plan and every variant that rows make of it; the variants of a group have to
multiply and to add in the same layouts (tests/kernels/test_compile_matmul.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from redraft.kernels.matmul import MAX_REGISTERS, NO_HEADS
from redraft.kernels.matmul_device import product
from redraft.kernels.matmul_plan import ROWS, TILES, plan
from redraft.kernels.qkv import heads_plan
from redraft.kernels.triton_support import CompileCase


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight's product as a layer asks for it."""

    outputs: int
    inner: int
    dtype: str
    norm: bool = False
    gated: bool = False
    residual: bool = False
    bias: bool = False
    half: int = 0
    """Of the heads that the outputs are, a whole number of them; 0 where they are none."""
    qk_norm: bool = False


def variants(weight: Weight) -> list[CompileCase]:
    """One tile of rows and two; beyond that parts of K in turn, and a norm apart."""
    itemsize = 4 if weight.dtype == "*fp32" else 2
    how = plan(weight.outputs, weight.inner, weight.gated, itemsize)
    if weight.half:
        of_heads = heads_plan(weight.outputs // 2, weight.inner, weight.half, weight.qk_norm, itemsize)
        assert of_heads is not None
        how = of_heads
    ways = [(1, how.parts > 1, weight.norm), (TILES, how.parts > 1, weight.norm)]
    if how.parts > 1 or weight.norm:
        ways.append((1 if weight.qk_norm else TILES, False, False))
    signature = dict.fromkeys(("p_x", "p_weight", "p_bias", "p_residual", "p_y"), weight.dtype)
    signature |= {"p_norm": "*fp32", "p_part": "*fp32", "p_ticket": "*i32", "eps": "fp32"}
    signature |= dict.fromkeys(("p_cos", "p_sin", "p_qk_norm"), "*fp32") | {"p_kv": weight.dtype, "scale": "fp32"}
    signature |= dict.fromkeys(("p_position", "p_cell"), "*i64")
    signature |= dict.fromkeys(("R", "N", "K", "part", "cells", "HQ", "HKV"), "i32")
    unused = {name: None for name in NO_HEADS if name.startswith("p_")}
    if weight.half:
        signature["p_y"], unused = "*fp32", {} if weight.qk_norm else {"p_qk_norm": None}
    return [
        CompileCase(
            product,
            signature,
            absent(p_norm=norm, p_bias=weight.bias, p_residual=weight.residual)
            | unused
            | {
                "HALF": weight.half,
                "QK_NORM": weight.qk_norm,
                "NORM": norm,
                "GATED": weight.gated,
                "BIAS": weight.bias,
                "RESIDUAL": weight.residual,
                "EVEN": weight.inner % how.block_k == 0,
                "PARTS": how.parts,
                "TICKET": ticket,
                "TILES": tiles,
                "ROWS": ROWS,
                "BLOCK_N": how.block_n,
                "BLOCK_K": how.block_k,
                "DEPENDENT": False,
            },
            num_warps=how.warps,
            num_stages=how.stages(tiles),
            maxnreg=MAX_REGISTERS,
            enable_fp_fusion=False,
            divisible=("N", "K", "part", "cells"),
        )
        for tiles, ticket, norm in ways
    ]


def absent(**used: bool) -> dict[str, Any]:
    """Arguments that are None."""
    return {name: None for name, is_used in used.items() if not is_used}


WEIGHTS = (
    Weight(4096, 2048, "*bf16", norm=True, bias=True),
    Weight(12288, 4096, "*bf16", norm=True, gated=True),
    Weight(1536, 576, "*fp32", norm=True, gated=True),
    Weight(960, 576, "*fp16", norm=True, half=32),
    Weight(4096, 2048, "*bf16", norm=True, half=64, qk_norm=True),
    Weight(151936, 4096, "*bf16", norm=True),
    Weight(2048, 6144, "*bf16", residual=True),
    Weight(576, 1536, "*bf16", residual=True),
    Weight(576, 576, "*bf16", residual=True),
    Weight(1536, 576, "*bf16", norm=True, gated=True),
    Weight(1152, 896, "*bf16", norm=True, half=32, bias=True),
)
"""What is launched, each that differs from the others in how it is compiled: biased projections, gates, fp32, heads of
64 and of 128 with their norms; the head; what is added to the residual stream, in four parts, in two, and in one whose
last block of K is half empty; 16 columns of gates; biased heads (Qwen2)."""

GROUPS = tuple(variants(weight) for weight in WEIGHTS)
DEPENDENT = tuple(
    replace(group[way], constexprs={**group[way].constexprs, "DEPENDENT": True}, least_capability=90)
    for group, way in ((GROUPS[0], 1), (GROUPS[-1], 0))
)
"""The same where it is launched early, the fullest of registers among them."""
COMPILE_CASES = (*(case for group in GROUPS for case in group), *DEPENDENT)
