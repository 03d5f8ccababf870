"""Bytes that a pass moves, from shapes alone: what a step must take at a given bandwidth, before it is measured.

Decoding is bound by memory: every weight is read once a pass, every cached key and value of the requests once, and
what rows write and read between the kernels is small beside it.  Each kernel's operands count as read once and its
results as written once, whether or not they would have been found in a cache, so small targets may beat the figure for
activations, and nothing beats that for weights.  What launches take beside that is counted (launches.py) and added in
predict.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from redraft.benchmarks.shapes import products
from redraft.drafts.dflash_config import DFlashConfig
from redraft.server.engine.target.spec import TargetSpec

QUERY_BYTES = 4
"""Queries go from rotation to attention in fp32."""
NORM_BYTES = 4
ID_BYTES = 8
LAUNCH_SECONDS = 2.5e-6
"""What a kernel of a graph takes beyond its bytes, 2 to 3 microseconds (design: "Numbers")."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one pass."""

    weights: int = 0
    kv: int = 0
    """Read for attention, and written by the pass's rows."""
    activations: int = 0
    """Of products and attention."""
    rest: int = 0
    """Of everything else: embedding, taps, logits read once more, texts, trees, keys and values that are moved."""

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.activations + self.rest

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def seconds(self, bytes_per_second: float) -> float:
        """Time that the pass's bytes take at ``bytes_per_second`` (of a copy, bytes read plus written)."""
        return self.total / bytes_per_second


def target_pass(spec: TargetSpec, rows: int, contexts: Sequence[int], itemsize: int) -> Traffic:
    """The pass of ``rows`` rows over requests that have ``contexts`` cached tokens each; ``itemsize`` bytes a number.

    Logits and their reading are part of it.  The rows of a request share one reading of its context.
    """
    sizes = products(spec)
    matrices = sum(outputs * inner * times for outputs, inner, times in sizes.values())
    norms = spec.layers * (2 * spec.hidden + spec.qk_norm * (spec.query_width + spec.kv_width)) + spec.hidden
    layer = _layer(spec.hidden, spec.intermediate, spec.query_width, spec.kv_width, itemsize)
    head = (spec.hidden + spec.vocab) * itemsize
    return Traffic(
        weights=matrices * itemsize + norms * NORM_BYTES,
        kv=(sum(contexts) + rows) * spec.kv_bytes(itemsize),
        activations=rows * (spec.layers * layer + head),
        # the embedding, the logits' reading
        rest=rows * (2 * spec.hidden + spec.vocab) * itemsize,
    )


def draft_pass(config: DFlashConfig, rows: int, contexts: Sequence[int], itemsize: int) -> Traffic:
    """A DFlash draft's blocks for requests of ``contexts`` tokens, and its context of ``rows`` rows of the target."""
    hidden, merged = config.hidden, config.query_width + 2 * config.kv_width
    layer = merged * hidden + hidden * config.query_width + 3 * hidden * config.intermediate
    context_kv = 2 * config.layers * config.kv_width
    weights = config.layers * layer + len(config.taps) * hidden * hidden + context_kv * hidden + config.tokens * hidden
    norms = config.layers * (2 * hidden + config.query_width + 2 * config.kv_width) + 2 * hidden
    blocks = len(contexts) * config.block_size
    kv_bytes = context_kv * itemsize
    in_layer = _layer(hidden, config.intermediate, config.query_width, config.kv_width, itemsize)
    # the taps' product and that of keys and values, each read and written
    absorbed = (len(config.taps) * hidden + 2 * hidden + context_kv) * itemsize
    return Traffic(
        weights=weights * itemsize + norms * NORM_BYTES,
        kv=(sum(contexts) + 2 * blocks) * kv_bytes,
        activations=blocks * (config.layers * in_layer + (hidden + config.tokens) * itemsize) + rows * absorbed,
        # embeddings, logits' reading; taps side by side, norm and rotation of keys
        rest=blocks * (2 * hidden + config.tokens) * itemsize
        + rows * (2 * len(config.taps) * hidden * itemsize + 2 * kv_bytes),
    )


def lookup(contexts: Sequence[int]) -> Traffic:
    """N-gram lookup: every text is read once, and where each token was last is noted and read (4 bytes each)."""
    return Traffic(rest=sum(contexts) * (ID_BYTES + 2 * 4))


def moved(kv_bytes: int, tokens: int) -> Traffic:
    """Keys and values of ``tokens`` accepted tokens of ``kv_bytes`` each that are moved to their cells."""
    return Traffic(rest=2 * tokens * kv_bytes)


def _layer(hidden: int, intermediate: int, query_width: int, kv_width: int, itemsize: int) -> int:
    """Bytes of a row's activations in one layer."""
    merged = query_width + 2 * kv_width
    return (
        # norm and projections, rotation without its cells, attention
        (hidden + merged + merged + query_width) * itemsize
        + 2 * query_width * QUERY_BYTES
        # output and residual, gate and up, down and residual
        + (query_width + 2 * hidden) * itemsize
        + (hidden + intermediate) * itemsize
        + (intermediate + 2 * hidden) * itemsize
    )
