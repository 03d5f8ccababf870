"""Floating-point operations of training, counted from sizes: a product of [m, k] by [k, n] is 2 m k n.

What is counted is what is computed: attention over all positions of the packed pass, masked ones too; the whole target,
where its states do not come from disk.  Norms, activations, softmax and optimiser are left out (under 1 %).  Verified
against torch's own counter of dispatched products.
"""

from __future__ import annotations

from dataclasses import dataclass

from redraft.drafts.dflash_config import DFlashConfig


@dataclass(frozen=True, slots=True)
class Flops:
    """By where they went."""

    target: int = 0
    """Reading texts, and rows behind rejected tokens."""
    draft: int = 0
    """Layers of the draft, proposals and gradients included."""
    head: int = 0
    """Products with the frozen head: draft's logits, their gradients, the target's logits."""

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.target + other.target, self.draft + other.draft, self.head + other.head)

    @property
    def total(self) -> int:
        return self.target + self.draft + self.head


def product(rows: int, inner: int, outer: int) -> int:
    """Of a matrix product."""
    return 2 * rows * inner * outer


def draft_pass(config: DFlashConfig, positions: int, anchors: int) -> int:
    """One packed forward pass over a text of ``positions`` with ``anchors`` blocks (module.py)."""
    hidden, size = config.hidden, config.block_size
    total = _fuse(config, positions)
    for layer in range(config.layers):
        asking = anchors * (size - 1 if layer == config.layers - 1 else size)
        total += product(asking, hidden, config.query_width) * 2  # queries, output
        total += product(anchors * size + positions, hidden, config.kv_width) * 2  # keys, values
        total += product(asking, config.query_width, positions + size) * 2  # scores, weighted values
        total += product(asking, hidden, config.intermediate) * 3
    return total


def draft_training(config: DFlashConfig, positions: int, anchors: int) -> int:
    """Forward and backward: each product has two gradients, but the taps need none."""
    return 3 * draft_pass(config, positions, anchors) - _fuse(config, positions)


def head_rows(config: DFlashConfig, rows: int, products: int = 1) -> int:
    """``products`` products of ``rows`` rows with the head: logits are one, their gradient another."""
    return products * product(rows, config.hidden, config.draft_vocab or config.vocab)


def _fuse(config: DFlashConfig, positions: int) -> int:
    return product(positions, len(config.taps) * config.hidden, config.hidden)
