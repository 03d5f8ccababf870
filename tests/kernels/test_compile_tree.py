"""The tree kernels compile for every supported architecture, within its registers and shared memory."""

from collections.abc import Callable

import pytest


@pytest.mark.parametrize("op", ["pack_tree", "accept", "compact_kv", "block_tree", "merge_trees", "spread_trees"])
def test_compiles_without_spilling(op: str, assert_compiles: Callable[[str], None]) -> None:
    assert_compiles(f"redraft.kernels.{op}")
