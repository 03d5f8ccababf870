"""How near the GPU's attention comes to reading its keys and values at the speed of a copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from redraft.benchmarks.attention_checks import Shape
from redraft.benchmarks.device_seconds import device_seconds
from redraft.benchmarks.suite_clock import LEFT_OUT, always
from redraft.benchmarks.traffic import LAUNCH_SECONDS
from redraft.kernels.attention_items import lanes_of
from redraft.kernels.paged_attention import PagedAttention
from redraft.kernels.rows import Rows
from redraft.kernels.tree_attention import CHUNK

PASSES = 10
BEYOND_CACHE = 2**28
"""Bytes of keys and values that a pass reads, layer after layer, so that none finds its own in the GPU's cache."""
MOST_LAYERS = 512
LOAD_SECONDS = 3.0
"""A load is not begun with less of the suite's time left."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is attended to at a time."""

    requests: int
    rows: int
    """Of each: a chain."""
    context: int


LOADS = tuple(
    Load(*load) for load in ((1, 1, 1024), (1, 16, 1024), (1, 64, 1024), (64, 1, 1024), (1, 1, 8192), (1, 16, 8192))
)
SPEED_SHAPES = (Shape(9, 3, 64), Shape(16, 8, 128), Shape(32, 8, 128))
"""SmolLM2-135M, Qwen3-1.7B, Qwen3-8B."""


def attention_speed(
    device: torch.device,
    dtype: torch.dtype,
    copy_bytes_per_second: float,
    fits: Callable[[float], bool] = always,
) -> list[dict[str, Any]]:
    """Of every shape and load: microseconds a layer, share of the copy bandwidth, floor, and what was predicted.

    The floor is to read keys and values once.  Predicted is that partial results are written and read as well, at the
    speed of a copy, and a launch or two.  A pass makes its list of items once, as the engine does; a layer's figure
    holds its part of that, one in ``layers``.  Where one launch can do, both forms are measured
    (``microseconds_by_launches``): where the one that ``one_launch_pays`` takes is the slower, its constants are wrong.
    ``fits``: whether so many seconds are left.
    """
    figures = []
    for shape in SPEED_SHAPES:
        for load in LOADS:
            if not fits(LOAD_SECONDS):
                figures.append({"shape": asdict(shape), **asdict(load), "skipped": LEFT_OUT})
                continue
            figure = measure(device, dtype, shape, load, copy_bytes_per_second)
            figures.append(figure)
            name = f"{shape}, {load.requests} x {load.rows} rows at {load.context}"
            forms = ", ".join(f"{found:.1f} in {n}" for n, found in figure["microseconds_by_launches"].items())
            print(f"  {name}: {forms}; {figure['launches']}: {figure['share']:.0%} of copying", flush=True)
    return figures


def measure(
    device: torch.device, dtype: torch.dtype, shape: Shape, load: Load, copy_bytes_per_second: float
) -> dict[str, Any]:
    """One figure, of as many launches as the engine has, and the time of the other form; on CUDA of captured graphs."""
    rows, pages = speed_rows(load, device)
    cells = (int(pages.max()) + 1) * CHUNK
    size = load.requests * load.context * 2 * shape.kv_heads * shape.dim * dtype.itemsize
    layers = min(max(BEYOND_CACHE // size, 1), MOST_LAYERS) if device.type == "cuda" else 1
    kv = torch.randn(layers, 2, cells, shape.kv_heads, shape.dim, device=device, dtype=dtype)
    q = torch.randn(rows.slot.shape[0], shape.heads, shape.dim, device=device) * shape.dim**-0.5

    def run(one_launch: bool) -> None:
        attend = PagedAttention(rows, pages, load.context, one_launch=one_launch)
        for key, value in kv:
            attend(q, key, value, dtype)

    chosen = PagedAttention(rows, pages, load.context)
    chosen(q, kv[0, 0], kv[0, 1], dtype)
    passes = PASSES if device.type == "cuda" else 1
    forms = {1: True, 2: False} if chosen.can_merge else {2: False}
    by_launches = {
        launches: device_seconds(partial(run, one_launch), device, passes) / layers
        for launches, one_launch in forms.items()
    }
    launches = 1 if chosen.merges else 2
    seconds = by_launches[launches]
    floor = size / copy_bytes_per_second
    chunks = -(-load.context // lanes_of(dtype, shape.dim))
    written = 2 * rows.slot.shape[0] * shape.heads * chunks * (shape.dim + 2) * 4
    predicted = (size + written) / copy_bytes_per_second + launches * LAUNCH_SECONDS
    return {
        "shape": asdict(shape),
        **asdict(load),
        "layers": layers,
        "launches": launches,
        "microseconds_by_launches": {str(number): found * 1e6 for number, found in by_launches.items()},
        "bytes": size,
        "microseconds": seconds * 1e6,
        "floor_microseconds": floor * 1e6,
        "predicted_microseconds": predicted * 1e6,
        "share": floor / seconds,
    }


def speed_rows(load: Load, device: torch.device) -> tuple[Rows, Tensor]:
    """Chains whose last rows see ``context`` positions each, and a page table in random order."""
    slot = torch.arange(load.requests).repeat_interleave(load.rows)
    depth = torch.arange(load.rows).repeat(load.requests)
    index = torch.arange(load.rows).expand(load.requests * load.rows, load.rows)
    path = torch.where(index <= depth.unsqueeze(1), index, -1)
    each = -(-load.context // CHUNK)
    pages = (torch.randperm(load.requests * each, generator=torch.Generator().manual_seed(0)) + 1).view(-1, each)
    pages = torch.cat((pages, torch.zeros_like(pages[:1])))
    nothing = torch.zeros_like(slot)
    tables = (nothing, slot, load.context - load.rows + depth, depth, nothing, depth, path, nothing[:0], nothing[:0])
    return Rows(*(table.to(device) for table in tables)), pages.to(device)
