"""Attention compiles to one class of products, and as many of its programs run at once as it counts on."""

from typing import Any

import pytest

from redraft.kernels.chunk_attention import COMPILE_CASES, SIZES, resident

pytestmark = pytest.mark.timeout(900)  # whoever comes first compiles

Usage = dict[str, Any]
KIB = 1024


@pytest.fixture(scope="module")
def chunks(usages: list[Usage]) -> dict[tuple[int, int], Usage]:
    """By case and capability."""
    return {(one["case"], one["capability"]): one for one in usages if one["module"].endswith(".chunk_attention")}


def test_to_one_class_of_products(chunks: dict[tuple[int, int], Usage]) -> None:
    products = {product for usage in chunks.values() for product in usage["products"]}
    # wgmma and tcgen05 sum in other orders, and which one is taken follows the shape of the tile
    assert products == {
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
    }
    assert all(len(usage["products"]) == 1 for usage in chunks.values())


def test_without_fused_products(usages: list[Usage]) -> None:
    """A fused multiply-add rounds once where the twin rounds twice."""
    names = tuple(f"redraft.kernels.{name}" for name in ("attention_items", "chunk_attention", "sum_chunks"))
    assert [usage for usage in usages if usage["module"] in names and usage["fused"]] == []


def test_adds_the_same_in_one_launch_or_two(chunks: dict[tuple[int, int], Usage]) -> None:
    """What is added to what until a chunk's results are written, launched early or not."""
    half = len(SIZES)
    for (case, capability), one in chunks.items():
        constants = COMPILE_CASES[case].constexprs
        apart = chunks[case - half if case < 2 * half else 1, capability] if constants["MERGE"] else one
        assert any(order.startswith("tt.dot") for order in apart["orders"])
        assert set(apart["orders"]) <= set(one["orders"])
        # nothing of memory is touched before the kernel before has ended
        assert one["early"] == []


def test_so_many_programs_run_at_once(chunks: dict[tuple[int, int], Usage]) -> None:
    """Its launch has ``resident`` programs a multiprocessor; were they fewer at once, the last would run alone.

    Consumer cards have shared memory for one of heads of 128, and fp32 is held to no number of registers.
    """
    shared = {80: 164 * KIB, 90: 228 * KIB, 100: 228 * KIB}
    for (case, capability), usage in chunks.items():
        if COMPILE_CASES[case].maxnreg is None:
            continue
        programs = resident(COMPILE_CASES[case].constexprs["HD"])
        assert programs * usage["warps"] * 32 * usage["registers"] <= 64 * KIB, usage
        if capability in shared:
            # 1 KiB of each one's is the system's
            assert programs * (usage["shared"] + KIB) <= shared[capability], usage
