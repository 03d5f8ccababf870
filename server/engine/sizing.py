"""How long requests may be and how many KV pages there are, from the memory there is."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.drafts.base import Context
from redraft.server.engine.config import PAGE
from redraft.server.engine.target.spec import TargetSpec
from redraft.server.engine.types import RedraftError

GIB = 2**30
WORKSPACE = GIB // 2
"""Set aside for logits, attention scores and the allocator where nothing was measured (dry_run.py)."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What fits."""

    max_model_len: int
    pages: int


def fit(
    spec: TargetSpec,
    context: Context,
    *,
    weight_itemsize: int,
    kv_itemsize: int,
    available: int,
    max_model_len: int | None,
    max_num_seqs: int,
    tree_rows: int,
    pages: int | None = None,
    workspace: int = WORKSPACE,
) -> Sizes:
    """Divide ``available`` bytes between weights, the draft's (``context``) among them, and KV.

    Raises ``RedraftError`` with the sum if the target does not fit.  Every slot gets room for a request of full length
    if memory holds it; otherwise fewer pages are made and requests wait for them.  A ``max_model_len`` that was asked
    for is never shortened.  ``pages`` is an upper bound of pages, for tests and comparisons; ``workspace`` what
    passes need, in bytes.
    """
    if max_model_len is not None and max_model_len > spec.context:
        raise RedraftError(f"--max-model-len {max_model_len} is beyond the target's context of {spec.context} tokens")
    # a tied embedding is kept twice on a CPU (looked up and laid out for the product), so count both everywhere
    weights = (spec.parameters + (spec.vocab * spec.hidden if spec.tied else 0) + context.weights) * weight_itemsize
    draft_kv = 2 * context.layers * context.kv_heads * context.head_dim * kv_itemsize
    page = (spec.kv_bytes(kv_itemsize) + draft_kv) * PAGE
    left = available - weights - workspace
    affordable = left // page - 1 if pages is None else min(left // page - 1, pages)
    per_request = _pages((max_model_len or spec.context) + tree_rows)
    if affordable < (per_request if max_model_len else _pages(2 * PAGE + tree_rows)):
        asked = (max_model_len or 2 * PAGE) + tree_rows
        kv = _pages(asked) * page
        raise RedraftError(
            f"the target does not fit: weights {weights / GIB:.2f} GiB + KV for one request of {asked} tokens "
            f"{kv / GIB:.2f} GiB + workspace {workspace / GIB:.2f} GiB = {(weights + kv + workspace) / GIB:.2f} GiB, "
            f"available are {available / GIB:.2f} GiB; take a smaller target, dtype or --max-model-len"
        )
    if max_model_len is None:
        max_model_len = min(spec.context, affordable * PAGE - tree_rows)
    return Sizes(max_model_len, min(affordable, max_num_seqs * _pages(max_model_len + tree_rows)))


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE)
