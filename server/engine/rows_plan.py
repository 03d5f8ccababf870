"""Sizes of passes.  Rows are rounded up to few sizes, so that a GPU needs few graphs and a CPU few kernels."""

from __future__ import annotations

BUCKETS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 384, 512)


MIN_ROWS = BUCKETS[0]
"""Equals ``kernels.linear.MIN_ROWS`` (asserted where both are known)."""


def row_bucket(rows: int) -> int:
    """The smallest size that holds ``rows``, never below ``MIN_ROWS``; beyond the table, multiples of 128."""
    rows = max(rows, MIN_ROWS)
    return next((size for size in BUCKETS if size >= rows), -(-rows // 128) * 128)
