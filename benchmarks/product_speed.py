"""How near to memory's limit a layer's products are: each weight shape's time, beside what its bytes must take.

Weights lie in memory several times and take turns, so that no cache holds the next one; on a GPU the launches are
recorded in one CUDA graph, as those of the engine's rounds are, so that launching them costs nothing here either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from redraft.benchmarks.device_seconds import device_seconds
from redraft.benchmarks.shapes import products
from redraft.benchmarks.suite_clock import LEFT_OUT, always
from redraft.benchmarks.traffic import LAUNCH_SECONDS
from redraft.kernels.layer_ops import LayerOps, layer_ops
from redraft.kernels.linear import Linear
from redraft.kernels.rope import rope_table
from redraft.server.engine.target.spec import TargetSpec

ROWS = (1, 16, 64)
ROTATED = 2**28
"""Bytes of weights that take turns, at least: several times the second cache of an H200 (50 MB)."""
PASSES = 7
PRODUCT_SECONDS = 2.0
"""A product is not begun with less of the suite's time left."""


def product_speed(
    name: str,
    spec: TargetSpec,
    device: torch.device,
    dtype: torch.dtype,
    copy_bytes_per_second: float,
    fits: Callable[[float], bool] = always,
) -> list[dict[str, Any]]:
    """Per product and row count: microseconds, those of its bytes alone, and their ratio (1 is the copy bandwidth).

    Predicted are those of the bytes and of a launch in a graph.  ``fits``: whether so many seconds are left.
    """
    cos, sin = rope_table(torch.ones(spec.head_dim // 2, device=device), 8)
    sizes = {"heads": spec.heads, "kv_heads": spec.kv_heads, "width": max(2 * spec.intermediate, spec.vocab)}
    ops = layer_ops(cos, sin, eps=spec.norm_eps, dtype=dtype, **sizes)
    found = []
    for product, (outputs, inner, times) in products(spec).items():
        for rows in ROWS:
            entry: dict[str, Any] = {"target": name, "product": product, "shape": [outputs, inner], "rows": rows}
            found.append(entry)
            if not fits(PRODUCT_SECONDS):
                entry["skipped"] = LEFT_OUT
                continue
            seconds, moved = _measure(ops, product, outputs, inner, rows, device, dtype)
            floor = moved / copy_bytes_per_second
            entry |= {
                "times_a_pass": times,
                "microseconds": round(seconds * 1e6, 2),
                "floor_microseconds": round(floor * 1e6, 2),
                "predicted_microseconds": round((floor + LAUNCH_SECONDS) * 1e6, 2),
                "share_of_copy_bandwidth": round(floor / seconds, 3),
            }
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Lines for people."""
    lines = [f"  {'':12} {'':8} {'rows':>4} {'us':>9} {'floor':>9} {'predicted':>9} {'share':>6}"]
    for one in found:
        if "skipped" in one:
            lines.append(f"  {one['target']:12} {one['product']:8} {one['rows']:4} {one['skipped']}")
            continue
        lines.append(
            f"  {one['target']:12} {one['product']:8} {one['rows']:4} {one['microseconds']:9.2f} "
            f"{one['floor_microseconds']:9.2f} {one['predicted_microseconds']:9.2f} "
            f"{one['share_of_copy_bandwidth']:6.2f}"
        )
    return "\n".join(lines)


def _measure(
    ops: LayerOps, product: str, outputs: int, inner: int, rows: int, device: torch.device, dtype: torch.dtype
) -> tuple[float, int]:
    """Seconds of one product as a layer asks for it, and the bytes it moves."""
    weight_bytes = outputs * inner * dtype.itemsize
    copies = -(-ROTATED // weight_bytes) if device.type == "cuda" else 2
    x = torch.randn(rows, inner, device=device).to(dtype)
    norm = torch.ones(inner, device=device)
    one = (torch.randn(outputs, inner, device=device) * inner**-0.5).to(dtype)
    linears = [Linear(one if number == 0 else one.clone()) for number in range(copies)]
    written = outputs // 2 if product == "gate_up" else outputs
    residual = torch.randn(rows, written, device=device).to(dtype) if product in ("output", "down") else None

    def run(linear: Linear) -> Tensor:
        if product == "gate_up":
            return ops.gate(x, norm, linear)
        return ops.project(x, norm, linear) if residual is None else linear(x, residual)

    def turn() -> None:
        for linear in linears:
            run(linear)

    seconds = device_seconds(turn, device, PASSES) / copies
    numbers = x.numel() + rows * written * (1 if residual is None else 2)
    return seconds, weight_bytes + numbers * dtype.itemsize
