"""Operations of EAGLE-3's training, counted as in flops.py: what is computed, padding and masked scores included.

With J pairs, A chains and D passes a text: ``fc`` reads J rows, keys and values are made of J + A (D - 1) rows,
queries, their outputs and the MLP of A D rows, which look at J pairs and at up to D - 1 rows of their own chain.  The
draft's head, which is trained, takes three products of A D rows (logits, gradients towards the states and towards the
head), the target's whole head one of A rows.
"""

from __future__ import annotations

from redraft.drafts.eagle3_config import Eagle3Config
from redraft.drafts.training.flops import product


def chains_pass(config: Eagle3Config, pairs: int, chains: int) -> int:
    """Unrolling ``chains`` of a text (eagle3_module.py), heads not included."""
    hidden, depth = config.hidden, config.steps
    rows = chains * depth
    total = _fuse(config, pairs)
    total += product(pairs + rows - chains, 2 * hidden, config.kv_width) * 2  # keys, values
    total += product(rows, 2 * hidden, config.query_width) + product(rows, config.query_width, hidden)
    total += sum(product(chains, config.query_width, pairs + own) * 2 for own in range(depth))  # scores, values
    total += product(rows, hidden, config.intermediate) * 3
    return total


def chains_training(config: Eagle3Config, pairs: int, chains: int) -> int:
    """Forward and backward: each product has two gradients, but the taps need none."""
    return 3 * chains_pass(config, pairs, chains) - _fuse(config, pairs)


def chains_head(config: Eagle3Config, chains: int) -> int:
    """Products of ``chain_loss`` with both heads."""
    own = product(chains * config.steps, config.hidden, config.draft_vocab) * 3
    return own + product(chains, config.hidden, config.vocab)


def _fuse(config: Eagle3Config, pairs: int) -> int:
    return product(pairs, len(config.taps) * config.hidden, config.hidden)
