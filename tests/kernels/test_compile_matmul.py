"""The layer's kernels compile for GPUs that are not here, and rows change nothing in how a product adds up."""

import re
from collections.abc import Callable
from typing import Any

from redraft.kernels.matmul_cases import GROUPS

Compile = Callable[..., list[dict[str, Any]]]


def test_all_compile_and_the_product_has_one_order_of_sums_for_all_rows(assert_compiles: Compile) -> None:
    modules = ("matmul_cases", "rms_norm", "rope_cache")
    found = assert_compiles(*(f"redraft.kernels.{module}" for module in modules))
    usages = {(one["case"], one["capability"]): one for one in found if one["module"].endswith("matmul_cases")}
    capabilities = {capability for _, capability in usages}
    first = 0
    for group in GROUPS:
        fp32 = group[0].signature["p_x"] == "*fp32"
        for capability in capabilities:
            variants = [usages[first + number, capability] for number in range(len(group))]
            # rows in tiles of 64 would be wgmma or tcgen05 on some of these
            instructions = {tuple(usage["products"]) for usage in variants}
            kind = group[0].signature["p_x"].removeprefix("*").replace("fp16", "f16")
            wanted = () if fp32 else (f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32",)
            assert instructions == {wanted}
            assert fp32 or not any(usage["fused"] for usage in variants)
            if capability in (90, 100):
                # one wave needs two programs on a multiprocessor; 1 KB of each one's shared memory is the system's
                assert all(2 * 128 * usage["registers"] <= 65536 for usage in variants)
                assert all(2 * (usage["shared"] + 1024) <= 227 * 1024 for usage in variants)
            # which warp has a tile of 16 x 8 does not matter to the tile, but in a reduction warps have parts of a sum
            orders = {
                tuple(re.sub(r"(nvidia_mma<.*?)warpsPerCTA = \[\d, \d\]", r"\1", o) for o in u["orders"])
                for u in variants
            }
            assert len(orders) == 1, f"variants of {group[0].constexprs} on {capability} add up differently: {orders}"
            assert any(order.startswith("tt.dot") for order in orders.pop())
        first += len(group)
