"""Sizes of passes.  Rows are rounded up to few sizes, so that a GPU needs few graphs and a CPU few kernels."""

from __future__ import annotations

BUCKETS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 384, 512)


MIN_ROWS = BUCKETS[0]
"""At least ``kernels.linear.MIN_ROWS`` (checked where both are known); 4 rows were faster than 2 (docs/log.md)."""


def row_bucket(rows: int) -> int:
    """The smallest size that holds ``rows``, never below ``MIN_ROWS``; beyond the table, multiples of 128."""
    rows = max(rows, MIN_ROWS)
    return next((size for size in BUCKETS if size >= rows), -(-rows // 128) * 128)
