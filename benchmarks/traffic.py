"""Bytes that a pass moves, from shapes alone: what a step must take at a given bandwidth, before it is measured.

Decoding is bound by memory: every weight is read once a pass, every cached key and value of the requests once, and
what rows write and read between the kernels is small beside it.  Each kernel's operands count as read once and its
results as written once, whether or not they would have been found in a cache, so small targets may beat the figure for
activations, and nothing beats that for weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redraft.benchmarks.shapes import products
from redraft.server.engine.target.spec import TargetSpec

QUERY_BYTES = 4
"""Queries go from rotation to attention in fp32."""
LAUNCH_SECONDS = 2.5e-6
"""What a kernel of a graph takes beyond its bytes, 2 to 3 microseconds (design: "Numbers")."""
OUTSIDE = 9
"""Launches of a plain step beside the target's pass; launches.py counts them."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one pass of the target, logits and their reading included."""

    weights: int
    kv: int
    """Read for attention, and written by the pass's rows."""
    activations: int
    launches: int
    """Kernels: five a layer with attention as one, embedding, head."""

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.activations

    def seconds(self, bytes_per_second: float) -> float:
        """Time that the pass's bytes take at ``bytes_per_second`` (of a copy, bytes read plus written)."""
        return self.total / bytes_per_second

    def predicted_seconds(self, bytes_per_second: float) -> float:
        """Time of a step around the pass: its bytes, and what launches take beside them."""
        return self.seconds(bytes_per_second) + (self.launches + OUTSIDE) * LAUNCH_SECONDS


def target_pass(spec: TargetSpec, rows: int, contexts: Sequence[int], itemsize: int) -> Traffic:
    """The pass of ``rows`` rows over requests that have ``contexts`` cached tokens each; ``itemsize`` bytes a number.

    The rows of a request share one reading of its context.
    """
    sizes = products(spec)
    matrices = sum(outputs * inner * times for outputs, inner, times in sizes.values())
    norms = spec.layers * (2 * spec.hidden + spec.qk_norm * (spec.query_width + spec.kv_width)) + spec.hidden
    kv = (sum(contexts) + rows) * spec.kv_bytes(itemsize)
    merged = sizes["qkv"][0]
    layer = (
        # norm and projections, rotation without its cells, attention
        (spec.hidden + merged + merged + spec.query_width) * itemsize
        + 2 * spec.query_width * QUERY_BYTES
        # output and residual, gate and up, down and residual
        + (spec.query_width + 2 * spec.hidden) * itemsize
        + (spec.hidden + spec.intermediate) * itemsize
        + (spec.intermediate + 2 * spec.hidden) * itemsize
    )
    ends = (2 * spec.hidden + spec.hidden + 2 * spec.vocab) * itemsize  # embedding, head, reading the logits
    return Traffic(
        weights=matrices * itemsize + norms * 4,
        kv=kv,
        activations=rows * (spec.layers * layer + ends),
        launches=5 * spec.layers + 2,
    )
