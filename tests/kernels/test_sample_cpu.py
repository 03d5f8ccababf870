"""A CPU's sampled rows, compiled and in torch, against the twin: random tables, awkward rows and sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from redraft.kernels import sample_cpu
from redraft.kernels.fused_cpu import load_fused
from redraft.kernels.noise import gumbel, gumbel_twin
from redraft.kernels.sample import SamplingTable, sample, sample_twin
from redraft.kernels.vocab_cpu import noise_of_ids

DTYPES = [torch.float32, torch.bfloat16]
SPECIAL = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 3e38, -3e38, 1e-40])
SLOTS = 12


@pytest.fixture(params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two CPU paths runs."""
    if request.param == "compiled":
        if load_fused() is None:
            pytest.skip("there is no C compiler")
        # so that what the compiled path leaves to torch would be seen
        monkeypatch.setattr(sample_cpu, "_winners", None)
    else:
        monkeypatch.setattr(sample_cpu, "is_compiled_for", lambda _logits: False)
    return str(request.param)


def drawn(generator: torch.Generator, choices: list[float]) -> Tensor:
    return torch.tensor(choices)[torch.randint(len(choices), (SLOTS + 1,), generator=generator)]


def table_of(generator: torch.Generator, V: int) -> SamplingTable:
    """Every filter off, weak, strong and absurd, in all combinations; two slots are greedy."""
    temperature = drawn(generator, [0.2, 0.7, 1.0, 1.0, 1.9])
    temperature[:2] = torch.tensor([0.0, 9e-6])
    return SamplingTable(
        temperature=temperature,
        top_p=drawn(generator, [1.0, 1.0, 0.95, 0.5, 1e-9, 1 - 2.0**-24]),
        min_p=drawn(generator, [0.0, 0.0, 0.05, 1e-7, 1.0]),
        top_k=drawn(generator, [0, 0, 1, 3, 40, V - 1, V, 10 * V]).clamp(min=0).long(),
        seed=torch.randint(-(2**63), 2**63 - 1, (SLOTS + 1,), generator=generator),
    )


def rows_of(generator: torch.Generator, V: int, dtype: torch.dtype, spread: float, special: bool) -> Tensor:
    rows = torch.randn(SLOTS, V, generator=generator) * spread
    rows[:, :: max(V // 5, 1)] += 2 * spread
    if special:
        picked = SPECIAL[torch.randint(len(SPECIAL), rows.shape, generator=generator)]
        rows = torch.where(torch.rand(rows.shape, generator=generator) < 0.3, picked, rows)
        rows[3], rows[4], rows[5] = torch.nan, -torch.inf, 0.5
    return rows.to(dtype)


def compare(generator: torch.Generator, rows: Tensor) -> None:
    table = table_of(generator, rows.shape[1])
    slot = torch.randperm(SLOTS + 1, generator=generator)[:SLOTS]
    position = torch.randint(0, 2**31, (SLOTS,), generator=generator)
    for filtered in (True, False):
        expected = sample_twin(rows, slot, position, table, sampled=True, filtered=filtered)
        got = sample(rows, slot, position, table, sampled=True, filtered=filtered)
        assert torch.equal(got, expected), (got - expected).nonzero()


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("V", [1, 2, 5, 63, 64, 65, 127, 700, 4097])
def test_random_tables(way: str, V: int, dtype: torch.dtype, special: bool) -> None:
    generator = torch.Generator().manual_seed(V)
    for _ in range(6 if way == "compiled" else 2):
        for spread in (0.01, 3.0, 25.0):
            compare(generator, rows_of(generator, V, dtype, spread, special))


@pytest.mark.parametrize(("V", "dtype", "spread"), [(49152, torch.bfloat16, 3.0), (151936, torch.float32, 1.0)])
def test_whole_vocabularies(way: str, V: int, dtype: torch.dtype, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    compare(generator, rows_of(generator, V, dtype, spread, special=False))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_follows_from_itself(way: str, threads: int) -> None:
    """Alone and among others, whatever the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        generator = torch.Generator().manual_seed(1)
        rows, table = rows_of(generator, 4096, torch.bfloat16, 3.0, special=True), table_of(generator, 4096)
        slot, position = torch.arange(SLOTS), torch.arange(SLOTS) * 7
        together = sample(rows, slot, position, table, sampled=True, filtered=True)
        for row in range(SLOTS):
            one = slice(row, row + 1)
            assert sample(rows[one], slot[one], position[one], table, sampled=True, filtered=True) == together[row]
    finally:
        torch.set_num_threads(before)


def test_many_draws_of_a_broad_row(way: str) -> None:
    """So many that a cut-off that lies a little wrong is seen; zeros of both signs are one number."""
    generator = torch.Generator().manual_seed(2)
    broad = torch.randn(1500, generator=generator) * 3
    zeros = torch.where(torch.rand(1500, generator=generator) < 0.5, 0.0, -0.0)
    zeros[::3] = -5.0
    table = SamplingTable.greedy(3, "cpu")
    table.temperature[:] = 1.0
    table.top_p[:] = torch.tensor([0.98, 0.98, 1.0, 1.0])
    table.top_k[:] = torch.tensor([0, 700, 30, 0])
    draws = 400 if way == "compiled" else 40
    position = torch.arange(draws)
    for slot, row in ((0, broad), (1, broad), (2, zeros)):
        arguments = row.expand(draws, -1).contiguous(), torch.full((draws,), slot), position, table
        expected = sample_twin(*arguments, sampled=True, filtered=True)
        assert torch.equal(sample(*arguments, sampled=True, filtered=True), expected)
        assert len(expected.unique()) > 10


@pytest.mark.skipif(load_fused() is None, reason="there is no C compiler")
def test_compiled_noise_has_the_twins_bits() -> None:
    generator = torch.Generator().manual_seed(3)
    seed = torch.randint(-(2**63), 2**63 - 1, (50,), generator=generator)
    t = torch.randint(0, 2**31, (50,), generator=generator)
    ids = torch.randint(0, 200_000, (50, 4000), generator=generator)
    compiled = noise_of_ids(seed, t, ids)
    assert compiled is not None
    assert torch.equal(compiled, gumbel_twin(seed, t, ids))
    assert torch.equal(gumbel(seed[::7], t[::7], ids[::7, ::3]), compiled[::7, ::3])
    assert gumbel(seed[:0], t[:0], ids[:0]).shape == (0, 4000)
