"""The tree kernels compile for every supported architecture, within its registers and shared memory."""

from collections.abc import Callable

import pytest

OPS = ["pack_tree", "place_rows", "accept", "compact_kv", "block_tree", "merge_trees", "spread_trees"]


@pytest.mark.parametrize("op", OPS)
def test_compiles_without_spilling(op: str, assert_compiles: Callable[[str], None]) -> None:
    assert_compiles(f"redraft.kernels.{op}")
