"""Rows change nothing in how a product adds up, which is compared in what it is compiled to."""

import re
from typing import Any

import pytest

from redraft.kernels import rms_norm
from redraft.kernels.matmul_cases import DEPENDENT, GROUPS

pytestmark = pytest.mark.timeout(900)  # whoever comes first compiles

Usage = dict[str, Any]


def test_rows_change_nothing_in_how_a_product_adds_up(usages: list[Usage]) -> None:
    found = {(one["module"].rpartition(".")[2], one["case"], one["capability"]): one for one in usages}
    capabilities = {one["capability"] for one in usages}
    norms = {case.signature["p_x"]: number for number, case in enumerate(rms_norm.COMPILE_CASES)}
    first = 0
    for group in GROUPS:
        dtype = group[0].signature["p_x"]
        for capability in capabilities:
            variants = [found["matmul_cases", first + number, capability] for number in range(len(group))]
            # the norm apart is the one that goes with more rows
            check(dtype, variants, found["rms_norm", norms[dtype], capability])
        first += len(group)


def test_weights_alone_are_asked_for_before_the_kernel_before_has_ended(usages: list[Usage]) -> None:
    early = [usage for usage in usages if usage["early"]]
    assert all(usage["early"] == ["prefetch.global.L2"] for usage in early), early
    assert len(early) == len(DEPENDENT) * len({usage["capability"] for usage in usages if usage["capability"] >= 90})


def check(dtype: str, variants: list[Usage], norm: Usage) -> None:
    """What one weight's product is on one architecture, for one tile of rows, two, and more."""
    tensor_cores = dtype != "*fp32"
    # rows in tiles of 64 would be wgmma or tcgen05 on some of these
    kind = dtype.removeprefix("*").replace("fp16", "f16")
    wanted = (f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32",) if tensor_cores else ()
    assert {tuple(usage["products"]) for usage in variants} == {wanted}
    assert not any(usage["fused"] for usage in [*variants * tensor_cores, norm])
    assert len({dots(usage) for usage in variants}) == 1
    assert all(dots(usage) for usage in variants)
    sums = {one for usage in [*variants, norm] for one in reductions(usage)}
    assert reductions(norm)
    assert len(sums) == 1, sums
    if norm["capability"] in (90, 100):
        # one wave needs two programs on a multiprocessor; 1 KB of each one's shared memory is the system's
        assert all(2 * 128 * usage["registers"] <= 65536 for usage in variants)
        assert all(2 * (usage["shared"] + 1024) <= 227 * 1024 for usage in variants)


def dots(usage: Usage) -> tuple[str, ...]:
    """Shapes and layouts of products; which warp has a tile of 16 x 8 does not matter to the tile."""
    found = [order for order in usage["orders"] if order.startswith("tt.dot")]
    return tuple(re.sub(r"(nvidia_mma<.*?)warpsPerCTA = \[\d, \d\]", r"\1", order) for order in found)


def reductions(usage: Usage) -> tuple[str, ...]:
    """Columns and layouts of reductions, of however many rows."""
    found = [order for order in usage["orders"] if order.startswith("tt.reduce")]
    return tuple(re.sub(r"tensor<\d+x", "tensor<", order).partition("->")[0] for order in found)
