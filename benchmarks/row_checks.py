"""Does a row get the same bits whatever rows stand beside it?  Losslessness rests on it (design: "Bits").

Each op runs on many rows at once, then on parts of them; every part must have the bytes it had in the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from redraft.benchmarks.kernel_checks import Check, Random, Sizes, same_bytes, sampling_inputs
from redraft.benchmarks.shape_target import random_weights
from redraft.kernels.attention import MakeAttention
from redraft.kernels.layer_ops import LayerOps, layer_ops
from redraft.kernels.linear import MIN_ROWS, Linear
from redraft.kernels.rms_norm import rms_norm
from redraft.kernels.rope import rope_table
from redraft.kernels.sample import sample
from redraft.kernels.tree_attention import CHUNK
from redraft.server.engine.self_check import differences
from redraft.server.engine.target.decoder import Target
from redraft.server.engine.target.spec import TargetSpec

COUNTS = (1, 2, 3, 4, 7, 8, 16, 17, 32, 33, 48, 64)
"""Row counts compared; on a CPU passes have at least ``MIN_ROWS`` rows."""
WHOLE = 67
"""More than a product's parts of K have programs of their own for."""
SHAPES = (
    *((576, 960), (576, 576), (576, 3072), (1536, 576), (896, 9728)),
    *((2048, 512), (2048, 2048), (2048, 12288), (6144, 2048), (2048, 151936)),
    *((4096, 6144), (4096, 24576), (12288, 4096)),
)
"""Inner and outer sizes of products, as targets of 135M to 8B parameters have them."""
LAYERS = 4
QUICK_SHAPES = ((64, 128), (576, 960))


def row_checks(
    sizes: Sizes, device: torch.device, dtype: torch.dtype, shapes: tuple[tuple[int, int], ...]
) -> Iterator[Check]:
    """Checks of the ops whose rows go through a matrix product, a reduction over the row, or sampling."""
    for inner, outer in shapes:
        yield f"linear {inner} x {outer}", partial(_linear, device, dtype, inner, outer)
        yield f"norm, linear {inner} x {outer}", partial(_normed, device, dtype, inner, outer, False)
        yield f"norm, gate, up {inner} x {outer}", partial(_normed, device, dtype, inner, outer, True)
    yield "rope_and_cache", partial(_rope, device, dtype)
    for normed in (False, True):
        yield f"attention_inputs{', normed' * normed}", partial(_attention_inputs, device, dtype, normed)
    yield "rms_norm", partial(_rms_norm, device, dtype)
    yield "sample", partial(_sample, sizes, device, dtype)


def layer_row_checks(
    targets: Mapping[str, TargetSpec], device: torch.device, dtype: torch.dtype, make_attention: MakeAttention
) -> Iterator[Check]:
    """``LAYERS`` layers of each target's shape with random weights: prefill, single steps, chains and trees agree."""
    for name, spec in targets.items():
        yield f"{name}, {LAYERS} layers", partial(_layers, spec, device, dtype, make_attention)


def _layers(spec: TargetSpec, device: torch.device, dtype: torch.dtype, make_attention: MakeAttention) -> str | None:
    few = replace(spec, layers=LAYERS)
    with torch.inference_mode():
        found = differences(Target(few, random_weights(few, device, dtype), 4 * CHUNK), make_attention)
    return f"other bits than in prefill: {', '.join(found)}" if found else None


def _linear(device: torch.device, dtype: torch.dtype, inner: int, outer: int) -> str | None:
    random = Random(device, inner)
    product = Linear((random.normal(outer, inner) * inner**-0.5).to(dtype))
    x, residual = random.normal(WHOLE, inner).to(dtype), random.normal(WHOLE, outer).to(dtype)
    return changed_rows(lambda part: product(x[part], residual[part]))


def _ops(device: torch.device, dtype: torch.dtype, width: int, dim: int = 64) -> LayerOps:
    """What a target with 3 heads of ``dim`` and a key head has on ``device``."""
    cos, sin = rope_table(torch.arange(dim // 2, device=device) / dim, WHOLE)
    return layer_ops(cos, sin, heads=3, kv_heads=1, eps=1e-5, dtype=dtype, width=width)


def _normed(device: torch.device, dtype: torch.dtype, inner: int, outer: int, gated: bool) -> str | None:
    random = Random(device, inner)
    ops = _ops(device, dtype, max(inner, outer))
    product = Linear((random.normal(outer, inner) * inner**-0.5).to(dtype), random.normal(outer).to(dtype))
    x, norm = random.normal(WHOLE, inner).to(dtype), random.normal(inner)
    run = ops.gate if gated else ops.project
    return changed_rows(lambda part: run(x[part], norm, product))


def _rope(device: torch.device, dtype: torch.dtype) -> str | None:
    random = Random(device, 0)
    ops = _ops(device, dtype, 5 * 64)
    qkv, qk_norm = random.normal(WHOLE, 5 * 64).to(dtype), random.normal(4, 64)
    place = torch.arange(WHOLE, device=device)
    # a CPU's cache is fp32
    kv = torch.zeros(2, WHOLE, 1, 64, device=device, dtype=torch.float32 if device.type == "cpu" else dtype)

    def run(part: slice) -> Tensor:
        ops.turn(place[part], place[part])
        q = ops.rope_and_cache(qkv[part], qk_norm, kv)
        return torch.cat((q.flatten(1), kv[:, part].transpose(0, 1).flatten(1).float()), 1)

    return changed_rows(run)


def _attention_inputs(device: torch.device, dtype: torch.dtype, normed: bool) -> str | None:
    random, inner, dim = Random(device, 0), 2048, 128
    ops = _ops(device, dtype, inner, dim)
    x, norm = random.normal(WHOLE, inner).to(dtype), random.normal(inner)
    product = Linear((random.normal(5 * dim, inner) * inner**-0.5).to(dtype))
    qk_norm = random.normal(4, dim) if normed else None
    place = torch.arange(WHOLE, device=device)
    kv = torch.zeros(2, WHOLE, 1, dim, device=device, dtype=torch.float32 if device.type == "cpu" else dtype)

    def run(part: slice) -> Tensor:
        ops.turn(place[part], place[part])
        q = ops.attention_inputs(x[part], norm, product, qk_norm, kv)
        return torch.cat((q.flatten(1), kv[:, part].transpose(0, 1).flatten(1).float()), 1)

    return changed_rows(run)


def _rms_norm(device: torch.device, dtype: torch.dtype) -> str | None:
    random = Random(device, 0)
    x, weight = random.normal(WHOLE, 576).to(dtype), random.normal(576)
    return changed_rows(lambda part: rms_norm(x[part], weight, 1e-5))


def _sample(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> str | None:
    wide = Sizes(sizes.vocab, WHOLE, sizes.slots, sizes.nodes, sizes.page, sizes.features)
    logits, slot, position, table = sampling_inputs(wide, Random(device, 0), dtype)
    return changed_rows(
        lambda part: sample(logits[part], slot[part], position[part], table, sampled=True, filtered=True)
    )


def changed_rows(run: Callable[[slice], Tensor]) -> str | None:
    """The row counts at which ``run`` on a part of ``WHOLE`` rows gives other bytes than on all of them."""
    whole = run(slice(0, WHOLE))
    changed = []
    for count in COUNTS:
        # at the front, at the end: the place of a row must not matter either
        for part in (slice(0, count), slice(WHOLE - count, WHOLE)):
            if count >= (1 if whole.is_cuda else MIN_ROWS) and not same_bytes(run(part), whole[part]):
                changed.append(count)
                break
    return f"other bits than among {WHOLE} rows at row counts {changed}" if changed else None
