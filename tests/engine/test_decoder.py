"""The decoder against transformers, in fp32, for each family; and the bits of a row against its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

KINDS = ("fused", "torch", "twin")
FAMILIES = ("llama", "llama3-rope", "qwen2", "qwen3")
LENGTH = 150
"""Crosses a chunk boundary."""


def tokens(count: int, vocab: int = 331) -> list[int]:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(vocab, (count,), generator=generator).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(
    family: str, kind: str, random_target: Callable[[str], Path], bench: Any, make_rows: Any
) -> None:
    from transformers import AutoModelForCausalLM

    folder = random_target(family)
    ids = tokens(LENGTH)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.tensor([ids])).logits[0]
    b = bench(folder)
    # in two chunks, so that the second attends to cached keys
    hidden = torch.cat([b.run(make_rows([(1, s, ids[s:e], None)]), kind) for s, e in ((0, 90), (90, LENGTH))])
    logits = b.target.logits(hidden)
    assert (logits - reference).abs().max() <= 1e-4 * reference.abs().max()


@pytest.mark.parametrize("kind", ["fused", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_has_the_same_bits_in_prefill_steps_and_company(
    family: str, kind: str, dtype: torch.dtype, random_target: Callable[[str], Path], bench: Any, make_rows: Any
) -> None:
    ids, other = tokens(LENGTH), tokens(40)
    b = bench(random_target(family), dtype)
    whole = b.run(make_rows([(0, 0, ids, None)]), kind)
    cached = b.cached(0, range(LENGTH)).clone()

    b.run(make_rows([(1, 0, ids[:120], None)]), kind)
    stepped = [b.run(make_rows([(1, i, ids[i : i + 1], None)], padding=1), kind)[:1] for i in range(120, LENGTH)]
    assert torch.equal(torch.cat(stepped), whole[120:])
    assert torch.equal(b.cached(1, range(LENGTH)), cached)

    b.run(make_rows([(0, 0, other, None)]), kind)
    mixed = b.run(make_rows([(0, 40, other[:7], None), (1, 125, ids[125:133], None)], padding=3), kind)
    assert torch.equal(mixed[7:15], whole[125:133])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [10, 122, 127, 128], ids=lambda s: f"root-at-{s}")
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_side_branch_has_the_bits_of_plain_decoding(
    family: str, start: int, kind: str, random_target: Callable[[str], Path], bench: Any, make_rows: Any
) -> None:
    ids = tokens(LENGTH)
    b = bench(random_target(family), torch.bfloat16)
    whole = b.run(make_rows([(1, 0, ids, None)]), kind)
    cached = b.cached(1, range(LENGTH)).clone()
    # root, a wrong spine of three, then the true branch of eight with a wrong leaf in its middle
    nodes = [ids[start], 5, 6, 7, *ids[start + 1 : start + 4], 9, *ids[start + 4 : start + 9]]
    parents = [0, 0, 1, 2, 0, 4, 5, 6, 6, 8, 9, 10, 11]
    true = [0, 4, 5, 6, 8, 9, 10, 11, 12]
    b.run(make_rows([(1, 0, ids[:start], None)]), kind)
    hidden = b.run(make_rows([(1, start, nodes, parents)], padding=3), kind)
    assert torch.equal(hidden[true], whole[start : start + 9])
    assert torch.equal(b.cached(1, [start + i for i in true]), cached[:, :, start : start + 9])


def test_stale_values_beyond_the_context_do_not_matter(
    random_target: Callable[[str], Path], bench: Any, make_rows: Any
) -> None:
    ids = tokens(20)
    b = bench(random_target("llama"))
    clean = b.run(make_rows([(0, 0, ids, None)]))
    b.kv.normal_()
    assert torch.equal(b.run(make_rows([(0, 0, ids, None)])), clean)


def test_taps_are_the_residual_stream(random_target: Callable[[str], Path], bench: Any, make_rows: Any) -> None:
    from transformers import AutoModelForCausalLM

    from redraft.kernels.rows import cells
    from redraft.kernels.tree_attention import CHUNK, CpuAttention

    folder, ids = random_target("llama"), tokens(12)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reference = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    b = bench(folder)
    rows = make_rows([(0, 0, ids, None)])
    cell = cells(b.page_table, rows.slot, rows.index, CHUNK)
    attend = CpuAttention(rows, b.page_table)
    taps = b.target.forward_tapped(rows.token, rows.position, cell, b.kv, attend, (0,))[1]
    assert (taps[:, 0] - reference[1][0]).abs().max() <= 1e-4 * reference[1].abs().max()
