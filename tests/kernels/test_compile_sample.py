"""The sampling kernels round as their twins do."""

from typing import Any

import pytest

pytestmark = pytest.mark.timeout(900)  # whoever comes first compiles

MODULES = tuple(f"redraft.kernels.{module}" for module in ("noise", "cutoff", "sample", "adjust"))


def test_without_fused_products(usages: list[dict[str, Any]]) -> None:
    """A fused multiply-add rounds once where torch rounds twice: noise and weights would not be the twin's."""
    ours = [usage for usage in usages if usage["module"] in MODULES or usage["kernel"] == "_best_of_row"]
    assert {usage["module"] for usage in ours} == {*MODULES, "redraft.kernels.marginals"}
    assert [usage for usage in ours if usage["fused"]] == []
