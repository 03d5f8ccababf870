"""A layer's kernels against their twins within a rounding, for sums in another order cannot agree byte for byte.

Inputs are made so that results are around 1.  Sums of fp32 over K differ by some sqrt(K) * 2^-24, which is nothing
beside the one rounding of each side, together at most one step of the dtype: ``rtol``.  A normed row may round an
element the other way, which moves a sum by that element's share of it: ``atol``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from redraft.benchmarks.kernel_checks import Check, Random
from redraft.benchmarks.shapes import products
from redraft.kernels import matmul, rms_norm
from redraft.kernels.layer_gpu import GpuOps
from redraft.kernels.layer_ops import LayerOps
from redraft.kernels.layer_torch import TorchOps
from redraft.kernels.linear import Linear
from redraft.kernels.rope import rope_table
from redraft.kernels.triton_support import INTERPRETED
from redraft.server.engine.target.spec import TargetSpec

STEP = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2**-19}
"""One step of the dtype, relative; of fp32 what sums in another order may differ by."""
ROWS = 67
"""More than one program's rows; the first 19 are looked at apart, whose parts of K have programs of their own."""


def layer_checks(targets: dict[str, TargetSpec], device: torch.device, seed: int = 0) -> Iterator[Check]:
    """Every product of ``targets``, norm and rotation, in bf16 (fp16 where Triton interprets, which cannot do bf16)."""
    dtype = torch.float16 if INTERPRETED else torch.bfloat16
    for name, spec in targets.items():
        for product, (outputs, inner, _) in products(spec).items():
            check = partial(_product, Random(device, seed), dtype, product, outputs, inner, spec.norm_eps)
            yield f"{name} {product} {outputs} x {inner}", check
        yield f"{name} rms_norm", partial(_norm, Random(device, seed), dtype, spec)
        yield f"{name} rope_cache", partial(_rope, Random(device, seed), dtype, spec)
        yield f"{name} attention_inputs", partial(_attention_inputs, Random(device, seed), dtype, spec)
    yield "product fp32", partial(_product, Random(device, seed), torch.float32, "qkv", 96, 576, 1e-6)


def outside(made: Tensor, wanted: Tensor, rtol: float, atol: float) -> str | None:
    """How far two tensors are apart, None if everywhere within ``rtol`` of the wanted number and ``atol``."""
    if made.shape != wanted.shape or made.dtype != wanted.dtype:
        return f"{made.dtype} {list(made.shape)}, not {wanted.dtype} {list(wanted.shape)}"
    apart = (made.double() - wanted.double()).abs()
    bad = ~(apart <= atol + rtol * wanted.double().abs())  # a NaN is not within anything
    if not bad.any():
        return None
    return (
        f"{int(bad.sum())} of {bad.numel()} are further apart than {rtol} and {atol}, the worst by {float(apart.max())}"
    )


def _product(random: Random, dtype: torch.dtype, product: str, outputs: int, inner: int, eps: float) -> str | None:
    gated = product == "gate_up"
    x = random.normal(ROWS, inner).to(dtype)
    weight = (random.normal(outputs, inner) * inner**-0.5).to(dtype)
    written = outputs // 2 if gated else outputs
    norm = 1 + 0.3 * random.normal(inner) if product in ("qkv", "gate_up", "head") else None
    residual = random.normal(ROWS, written).to(dtype) if product in ("output", "down") else None
    bias = random.normal(outputs).to(dtype) if product == "qkv" else None
    for rows in (ROWS, 19):
        rest = None if residual is None else residual[:rows]
        made, wanted = (
            op(x[:rows], weight, bias, rest, norm, eps, gated) for op in (matmul.matmul_kernel, matmul.matmul_twin)
        )
        problem = outside(made, wanted, STEP[dtype], STEP[dtype])
        if problem is not None:
            return f"{rows} rows: {problem}"
    return None if not matmul.workspace(x.device)[1].any() else "a ticket was left behind"


def _norm(random: Random, dtype: torch.dtype, spec: TargetSpec) -> str | None:
    x, weight = random.normal(ROWS, spec.hidden).to(dtype), random.normal(spec.hidden)
    made = rms_norm.rms_norm_kernel(x, weight, spec.norm_eps)
    return outside(made, rms_norm.rms_norm_twin(x, weight, spec.norm_eps), STEP[dtype], 1e-6)


def _rope(random: Random, dtype: torch.dtype, spec: TargetSpec) -> str | None:
    qkv = random.normal(ROWS, (spec.heads + 2 * spec.kv_heads) * spec.head_dim).to(dtype)

    def run(ops: LayerOps, qk_norm: Tensor | None, kv: Tensor) -> Tensor:
        return ops.rope_and_cache(qkv, qk_norm, kv)

    (made, cache), (wanted, other) = _heads(random, dtype, spec, ROWS, run)
    return outside(made, wanted, STEP[torch.float32], 1e-5) or outside(cache, other, STEP[dtype], 1e-5)


def _attention_inputs(random: Random, dtype: torch.dtype, spec: TargetSpec) -> str | None:
    width, inner, step = (spec.heads + 2 * spec.kv_heads) * spec.head_dim, spec.hidden, STEP[dtype]
    x, norm = random.normal(ROWS, inner).to(dtype), 1 + 0.3 * random.normal(inner)
    qkv = Linear((random.normal(width, inner) * inner**-0.5).to(dtype))
    for rows in (ROWS, 19):

        def run(ops: LayerOps, qk_norm: Tensor | None, kv: Tensor, part: Tensor = x[:rows]) -> Tensor:
            return ops.attention_inputs(part, norm, qkv, qk_norm, kv)

        # queries stay fp32, but of projections that both have rounded
        (made, cache), (wanted, other) = _heads(random, dtype, spec, rows, run)
        problem = outside(made, wanted, step, step) or outside(cache, other, step, step)
        if problem is not None:
            return f"{rows} rows: {problem}"
    return None if not matmul.workspace(x.device)[1].any() else "a ticket was left behind"


def _heads(
    random: Random,
    dtype: torch.dtype,
    spec: TargetSpec,
    rows: int,
    run: Callable[[LayerOps, Tensor | None, Tensor], Tensor],
) -> list[tuple[Tensor, Tensor]]:
    """Queries and cache that ``run`` makes of ``rows`` rows with the kernels, and with their twin."""
    half = torch.arange(spec.head_dim // 2, device=random.device) / (spec.head_dim // 2)
    cos, sin = rope_table(spec.rope_theta**-half, 512)
    twin = TorchOps(cos, sin, spec.heads, spec.kv_heads, spec.norm_eps)
    ops: tuple[LayerOps, LayerOps] = GpuOps(cos, sin, spec.heads, spec.norm_eps), twin
    qk_norm = random.normal(spec.heads + spec.kv_heads, spec.head_dim) if spec.qk_norm else None
    position, cell = random.ints(0, 512, rows), torch.randperm(256, generator=random.generator)[:rows].to(random.device)
    caches = torch.zeros(2, 2, 256, spec.kv_heads, spec.head_dim, dtype=dtype, device=random.device)
    found = []
    for one, cache in zip(ops, caches, strict=True):
        one.turn(position, cell)
        found.append((run(one, qk_norm, cache), cache))
    return found
