"""Sizes of passes.  Rows are rounded up to few sizes, so that a GPU needs few graphs and a CPU few kernels."""

from __future__ import annotations

STEP = 128
"""Between sizes beyond the table, and no more between those in it."""
BUCKETS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 384, 512)
MIN_ROWS = BUCKETS[0]
"""At least ``kernels.linear.MIN_ROWS`` (checked where both are known); 4 rows were faster than 2 (docs/log.md)."""
RECORDED = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Sizes of recorded passes with prefill, and of what they verify: fewer, since the two come in all combinations.  Up to
128 rows a GPU reads weights for about as long as it computes, and 16 are what its smallest product has anyway."""
ALWAYS_RECORDED = 512
"""Rows up to which passes with prefill are recorded, whatever the target."""
LAUNCHING, ARITHMETIC = 4e-3, 4e14
"""Seconds that launching a pass op by op takes, and operations of a GPU in one: where a pass keeps it busy for longer,
recording gains nothing, and padding to few sizes costs.  Both are reckoned, not measured."""


def row_bucket(rows: int) -> int:
    """The smallest size that holds ``rows``, never below ``MIN_ROWS``; beyond the table, multiples of ``STEP``."""
    rows = max(rows, MIN_ROWS)
    return next((size for size in BUCKETS if size >= rows), -(-rows // STEP) * STEP)


def prefill_room(most_rows: int) -> int:
    """Most rows of prefill, padding included, where a pass has at most ``most_rows`` beside what grammars force."""
    return row_bucket(most_rows) + STEP


def round_room(trees: int, prefill: int, forced: int) -> int:
    """Most rows that a round verifies, padding included, where all trees together have at most ``trees`` nodes.

    ``prefill``: what ``prefill_room`` says, 0 where a pass has no bound but that; ``forced``: nodes of grammars on top.
    """
    # nodes that are tried for nothing fill the padding (pace.py)
    most = min(trees + STEP, prefill + forced) if prefill else trees + STEP
    return max(row_bucket(most), _recorded(most))


def recorded_rows(most_rows: int, weights: int) -> int:
    """Rows of the largest pass with prefill that is recorded.

    ``most_rows``: of any pass; ``weights``: of the target.
    """
    worth = LAUNCHING * ARITHMETIC / (2 * weights)
    return min(row_bucket(most_rows), max(size for size in RECORDED if size <= max(worth, ALWAYS_RECORDED)))


def pass_sizes(rows: int, prefill: int, recorded: int = 0) -> tuple[int, int]:
    """Rows to verify and rows of prefill of a pass that has so many of them, both padded.

    ``recorded``: up to so many rows a pass with prefill is to be of few kinds, since it is recorded.  Its rows to
    verify are padded by themselves then; otherwise all padding follows the prefill.  Without ``rows`` nobody decodes.
    """
    if not prefill:
        return row_bucket(rows), 0
    verified = _recorded(rows) if rows else 0
    total = _recorded(verified + prefill)
    if total <= recorded:
        return verified, total - verified
    return rows, row_bucket(rows + prefill) - rows


def _recorded(rows: int) -> int:
    return next((size for size in RECORDED if size >= rows), rows)
