"""The layer's kernels compile for GPUs that are not here, and rows change nothing in how a product adds up."""

import re
from collections.abc import Callable
from typing import Any

from redraft.kernels import rms_norm
from redraft.kernels.matmul_cases import DEPENDENT, GROUPS

Usage = dict[str, Any]


def test_all_compile_and_rows_change_nothing_in_how_a_product_adds_up(
    assert_compiles: Callable[..., list[Usage]],
) -> None:
    usages = {
        (usage["module"].rpartition(".")[2], usage["case"], usage["capability"]): usage
        for usage in assert_compiles(
            *(f"redraft.kernels.{name}" for name in ("matmul_cases", "rms_norm", "rope_cache"))
        )
    }
    early = {key: usage["early"] for key, usage in usages.items() if usage["early"]}
    # weights alone are asked for before the kernel before has ended
    assert all(found == ["prefetch.global.L2"] for found in early.values()), early
    assert len(early) == len(DEPENDENT) * len({capability for _, _, capability in usages if capability >= 90})
    norms = {case.signature["p_x"]: number for number, case in enumerate(rms_norm.COMPILE_CASES)}
    first = 0
    for group in GROUPS:
        dtype = group[0].signature["p_x"]
        for capability in {capability for _, _, capability in usages}:
            variants = [usages["matmul_cases", first + number, capability] for number in range(len(group))]
            # the norm apart is the one that goes with more rows
            check(dtype, variants, usages["rms_norm", norms[dtype], capability])
        first += len(group)


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
