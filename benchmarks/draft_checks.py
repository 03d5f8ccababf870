"""The kernels around a draft's layers against their twins on random inputs.

What they say is the same byte for byte, but for log-probabilities, which decide nothing but speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from redraft.benchmarks.kernel_checks import Check, Random, Sizes, difference
from redraft.kernels import active_slots, block_rows, marginals
from redraft.kernels.tree_attention import CHUNK


def draft_checks(sizes: Sizes, device: torch.device, seed: int = 0) -> Iterator[Check]:
    """All of them at ``sizes``; inputs are made when a check runs."""
    yield "active_slots", partial(_active_slots, sizes, Random(device, seed))
    for causal in (False, True):
        yield f"block_rows{' causal' * causal}", partial(_block_rows, sizes, Random(device, seed), causal)
    for dtype, sampled in ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)):
        check = partial(_marginals, sizes, Random(device, seed), dtype, sampled)
        yield f"marginals {'sampled' if sampled else 'greedy'} {str(dtype).removeprefix('torch.')}", check


def _active_slots(sizes: Sizes, random: Random) -> str | None:
    slots, width = sizes.slots + 1, 4 * sizes.page
    active = random.ints(0, 2, slots) > 0
    active[-1] = False
    inputs = random.ints(0, sizes.vocab, slots, width), random.ints(0, width, slots), active, slots
    return difference(active_slots.active_slots_kernel(*inputs), active_slots.active_slots_twin(*inputs))


def _block_rows(sizes: Sizes, random: Random, causal: bool) -> str | None:
    slots, pages = sizes.slots + 1, 4
    slot, anchor = random.ints(0, slots, slots), random.ints(0, sizes.vocab, slots)
    root = random.ints(0, pages * CHUNK - sizes.nodes, slots) * (slot < sizes.slots)
    embedding = random.normal(sizes.vocab, sizes.features[2] * 3 + 1).to(torch.bfloat16)
    inputs = slot, anchor, root, random.ints(0, 99, slots, pages), embedding
    made, wanted = (
        op(*inputs, size=sizes.nodes, mask=7, causal=causal)
        for op in (block_rows.block_rows_kernel, block_rows.block_rows_twin)
    )
    return difference(made, wanted)


def _marginals(sizes: Sizes, random: Random, dtype: torch.dtype, sampled: bool) -> str | None:
    slots, depths, best = sizes.slots, 2, 64
    logits = (random.normal(slots, depths, sizes.vocab) * 4).clamp_(max=19)
    # torch promises no order of equals, so the best differ, also in bf16
    order = random.uniform(slots, depths, best).argsort(-1)
    logits[..., torch.randperm(sizes.vocab, generator=random.generator)[:best].to(random.device)] = 20 + order / 8
    noise_ = marginals.Noise(
        random.ints(-(2**62), 2**62, slots + 1),
        random.ints(0, 5000, slots),
        random.ints(0, 2, slots + 1) * (0.2 + random.uniform(slots + 1)),
        random.ints(0, slots, slots),
    )
    ids = torch.randperm(sizes.vocab, generator=random.generator).to(random.device)
    inputs = logits.to(dtype), 0.5 + random.uniform(depths), 8, ids, noise_ if sampled else None
    (token, value), (wanted, near) = (op(*inputs) for op in (marginals.marginals_kernel, marginals.marginals_twin))
    if not torch.allclose(value, near, rtol=1e-5, atol=1e-5):
        return f"log-probabilities: off by up to {float((value - near).abs().max())}"
    return difference(token, wanted, "tokens")
