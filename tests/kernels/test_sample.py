"""Sampling: twin against the definitions, CPU path and kernel against the twin, distributions against softmax."""

import math

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from redraft.kernels.sample import SamplingTable, sample, sample_kernel, sample_twin

INF = float("inf")

# temperature, top_p, min_p, top_k of one slot
OFF = (1.0, 1.0, 0.0, 0)
SETTINGS = [
    OFF,
    (0.0, 1.0, 0.0, 0),
    (0.8, 0.95, 0.0, 0),
    (0.8, 1.0, 0.0, 5),
    (1.3, 1.0, 0.1, 0),
    (0.7, 0.9, 0.05, 20),
    (2.0, 0.5, 0.0, 100_000),
    (1.0, 1e-9, 0.0, 0),
    (0.0, 0.5, 0.5, 3),
    (1.0, 1.0, 0.0, 1),
]


def make_table(settings, device="cpu", seed=0):
    """A table with one slot per setting and the trash slot."""
    table = SamplingTable.greedy(len(settings), device)
    for column, values in zip(("temperature", "top_p", "min_p", "top_k"), zip(*settings, strict=True), strict=True):
        tensor = getattr(table, column)
        tensor[:-1] = torch.tensor(values, dtype=tensor.dtype)
    generator = torch.Generator().manual_seed(seed)
    table.seed.copy_(torch.randint(-(2**63), 2**63 - 1, table.seed.shape, generator=generator))
    return table


def make_logits(R, V, seed=0, dtype=torch.float32):
    """Logits of a language model's shape: a broad bulk and a few likely tokens; bf16 makes ties."""
    generator = torch.Generator().manual_seed(seed)
    bulk = torch.randn(R, V, generator=generator) * 3
    likely = torch.rand(R, V, generator=generator) < 4 / V
    return (bulk + likely * 10).to(dtype)


def rows_of(R, seed=0):
    return torch.arange(R), torch.randint(0, 5000, (R,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("V", [1, 3, 63, 1000, 49152])
def test_twin_follows_the_definitions(V, literal_choice):
    table, logits = make_table(SETTINGS), make_logits(len(SETTINGS), V)
    slot, position = rows_of(len(SETTINGS))
    got = sample_twin(logits, slot, position, table, sampled=True, filtered=True)
    expected = [
        literal_choice(logits[row].numpy(), *SETTINGS[row], int(table.seed[row]), int(position[row]) + 1)
        for row in range(len(SETTINGS))
    ]
    assert got.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("V", [1, 3, 63, 1000, 1024, 49152])
def test_cpu_path_equals_twin(V, dtype):
    """49152 takes the path that makes whole rows of Philox words; bf16 has ties at maxima and at cut-offs."""
    slot, position = rows_of(len(SETTINGS))
    for seed in range(4 if V < 49152 else 1):
        table, logits = make_table(SETTINGS, seed=seed), make_logits(len(SETTINGS), V, seed, dtype)
        for filtered in (True, False):
            arguments = (logits, slot, position, table)
            expected = sample_twin(*arguments, sampled=True, filtered=filtered)
            assert torch.equal(sample(*arguments, sampled=True, filtered=filtered), expected)


def test_flat_rows_take_the_full_sort_and_agree():
    """A cut-off further than 12 below the maximum, and many tokens kept."""
    logits = torch.linspace(0, 1, 9000)[torch.randperm(9000, generator=torch.Generator().manual_seed(0))]
    logits = torch.stack([logits, logits * 30, -logits * 30])
    table = make_table([(1.0, 0.9, 0.0, 0), (1.0, 1 - 1e-7, 0.0, 0), (1.0, 1.0, 0.0, 7000)])
    slot, position = rows_of(3)
    for t in range(2):
        arguments = (logits, slot, position + t, table)
        expected = sample_twin(*arguments, sampled=True, filtered=True)
        assert torch.equal(sample(*arguments, sampled=True, filtered=True), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("V", [1, 63, 130, 1000, 1024, 5000])
def test_greedy_takes_the_lowest_of_the_largest(V, dtype):
    """Rows above, at and below zero: the integer comparison holds above zero only."""
    rows = make_logits(4, V, dtype=dtype)
    rows = torch.cat([rows, rows - 100, torch.zeros(1, V, dtype=dtype), -torch.zeros(1, V, dtype=dtype)])
    rows[-1, V // 2 :] = 0.0
    rows[0, V // 2] = rows[0, -1] = INF
    slot, position = torch.zeros(len(rows), dtype=torch.int64), torch.zeros(len(rows), dtype=torch.int64)
    got = sample(rows, slot, position, make_table([OFF]), sampled=False, filtered=False)
    assert got.tolist() == [int(np.argmax(row)) for row in rows.float().numpy()]


def saturated_rows(V):
    """Rows that break softmaxes, each with the only token that may be chosen at any temperature."""
    single, nan_single, huge, tiny = (torch.full((V,), -INF) for _ in range(4))
    single[V - 1] = -3.0
    nan_single[:] = float("nan")
    nan_single[V // 2] = 1.0
    huge[:] = -3e38
    huge[V // 3] = 3e38
    tiny[V // 4] = -1e38
    infinite = torch.zeros(V)
    infinite[V // 2] = INF
    hopeless = [torch.full((V,), -INF), torch.full((V,), float("nan"))]
    rows = torch.stack([single, nan_single, huge, tiny, infinite, *hopeless])
    return rows, [V - 1, V // 2, V // 3, V // 4, V // 2, 0, 0]


@pytest.mark.parametrize("setting", [OFF, SETTINGS[1], SETTINGS[2], SETTINGS[5], (1.0, 1.0, 0.2, 0)], ids=str)
@pytest.mark.parametrize("V", [63, 5000])
def test_saturated_rows(V, setting):
    rows, expected = saturated_rows(V)
    slot, position = torch.zeros(len(rows), dtype=torch.int64), torch.arange(len(rows))
    table = make_table([setting])
    for function in (sample, sample_twin):
        assert function(rows, slot, position, table, sampled=True, filtered=True).tolist() == expected


@pytest.mark.parametrize("V", [63, 6000])
def test_equal_logits_everywhere(V):
    """Everything ties: top_k keeps the lowest ids, noise decides among them, greedy takes token 0."""
    table = make_table([OFF, (1.0, 1.0, 0.0, 4), (1.0, 0.5, 0.0, 0), (0.0, 1.0, 0.0, 0)])
    for t in range(6):
        arguments = (torch.full((4, V), 2.5), torch.arange(4), torch.full((4,), t), table)
        choice = sample(*arguments, sampled=True, filtered=True)
        assert torch.equal(choice, sample_twin(*arguments, sampled=True, filtered=True))
        assert choice[1] < 4
        assert choice[2] < math.ceil(V / 2)
        assert choice[3] == 0


@pytest.mark.parametrize("function", [sample, sample_twin])
def test_a_row_alone_equals_the_row_among_neighbours(function):
    """Catches noise or sums that depend on a row's index, on the number of rows or on the neighbours' parameters."""
    R = 24
    settings = (SETTINGS * 3)[:R]
    table, logits = make_table(settings), make_logits(R, 5001, dtype=torch.bfloat16)
    slot, position = rows_of(R)
    order = torch.randperm(R, generator=torch.Generator().manual_seed(3))
    together = function(logits[order], slot[order], position[order], table, sampled=True, filtered=True)
    for place, row in enumerate(order.tolist()):
        one = slice(row, row + 1)
        alone = function(logits[one], slot[one], position[one], table, sampled=True, filtered=True)
        assert alone.item() == together[place].item()


def test_filtered_flag_changes_nothing_for_rows_without_filters():
    table, logits = make_table([OFF, (0.6, 1.0, 0.0, 0), (0.0, 1.0, 0.0, 0)]), make_logits(3, 4001)
    arguments = (logits, *rows_of(3), table)
    plain = sample(*arguments, sampled=True, filtered=False)
    assert torch.equal(sample(*arguments, sampled=True, filtered=True), plain)


@pytest.mark.parametrize(
    ("V", "dtype"), [(1, torch.float32), (63, torch.float32), (200, torch.bfloat16), (70, torch.float16)]
)
def test_kernel_equals_twin(kernel_device, poisoned, V, dtype):
    """Small blocks, so that rows span several of them and the last one is ragged.

    Equal without a tolerance: both do the same roundings.
    """
    table = make_table(SETTINGS, kernel_device)
    logits = make_logits(len(SETTINGS), V, dtype=dtype).to(kernel_device)
    slot, position = (index.to(kernel_device) for index in rows_of(len(SETTINGS)))
    for sampled, filtered in ((False, False), (True, False), (True, True)):
        arguments = (logits, slot, position, table)
        with poisoned():
            got = sample_kernel(*arguments, sampled=sampled, filtered=filtered, block=64)
        assert torch.equal(got, sample_twin(*arguments, sampled=sampled, filtered=filtered))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy's, in the interpreter
def test_kernel_takes_saturated_and_tied_rows(kernel_device, poisoned):
    rows, expected = saturated_rows(40)
    rows = torch.cat([rows, torch.full((1, 40), 2.5), torch.zeros(1, 40)]).to(kernel_device)
    rows[-1, ::2] = -0.0
    slot, position = (torch.arange(9, device=kernel_device) * 0, torch.arange(9, device=kernel_device))
    for setting in (SETTINGS[2], SETTINGS[5]):
        arguments = (rows, slot, position, make_table([setting], kernel_device))
        with poisoned():
            got = sample_kernel(*arguments, sampled=True, filtered=True, block=32)
        assert got[:7].tolist() == expected
        assert torch.equal(got, sample_twin(*arguments, sampled=True, filtered=True))


def test_kernel_refuses_what_it_cannot_read(kernel_device):
    table = make_table([OFF], kernel_device)
    rows = torch.zeros(2, dtype=torch.int64, device=kernel_device)
    with pytest.raises(ValueError, match=r"logits must be torch\.float32 or torch\.bfloat16 or torch\.float16"):
        sample_kernel(torch.zeros(2, 8, device=kernel_device).double(), rows, rows, table, sampled=True, filtered=True)
    with pytest.raises(ValueError, match="logits must be contiguous"):
        sample_kernel(torch.zeros(8, 2, device=kernel_device).t(), rows, rows, table, sampled=True, filtered=True)


def allowed_distribution(logits, temperature, top_p, min_p, top_k):
    """What is to be sampled from, by enumeration of a small vocabulary."""
    p = torch.softmax(logits.double() / temperature, 0)
    keep = p >= min_p * p.max()
    order = p.argsort(descending=True)
    order = order[keep[order]][: top_k or None]
    cumulative = (p[order] / p[order].sum()).cumsum(0)
    order = order[: int((cumulative < top_p).sum()) + 1]
    return torch.zeros_like(p).index_copy_(0, order, p[order] / p[order].sum())


@pytest.mark.parametrize("by", ["seed", "position"])
@pytest.mark.parametrize(
    "setting", [OFF, (0.7, 1.0, 0.0, 0), (1.0, 1.0, 0.0, 4), (1.0, 0.8, 0.0, 0), (1.5, 1.0, 0.2, 0)], ids=str
)
def test_sampled_tokens_have_the_softmax_distribution(setting, by):
    """Chi-square over 8,000 draws, at a level of 1 in 1,000 with fixed seeds; nothing filtered may ever come out."""
    draws = 8000
    logits = torch.tensor([1.0, 0.2, -0.3, 1.4, -1.1, 0.0, 0.7, -2.0, 0.5])
    table = make_table([setting] * (draws if by == "seed" else 1))
    rows, zeros = torch.arange(draws), torch.zeros(draws, dtype=torch.int64)
    slot, position = (rows, zeros) if by == "seed" else (zeros, rows)
    choice = sample_twin(logits.expand(draws, -1), slot, position, table, sampled=True, filtered=True)
    counts = choice.bincount(minlength=len(logits)).double()
    expected = allowed_distribution(logits, *setting) * draws
    allowed = expected > 0
    assert counts[~allowed].sum() == 0
    statistic = ((counts - expected)[allowed] ** 2 / expected[allowed]).sum()
    freedom = torch.tensor((int(allowed.sum()) - 1) / 2, dtype=torch.float64)
    assert torch.special.gammaincc(freedom, statistic / 2) > 1e-3


def test_noise_of_neighbouring_positions_is_independent():
    """Two draws of a uniform row in successive positions fill all pairs evenly: catches a counter that repeats."""
    draws = 16_000
    zeros = torch.zeros(draws + 1, dtype=torch.int64)
    table = make_table([OFF])
    choice = sample_twin(torch.zeros(draws + 1, 4), zeros, torch.arange(draws + 1), table, sampled=True, filtered=False)
    pairs = (choice[:-1] * 4 + choice[1:]).bincount(minlength=16).double()
    statistic = ((pairs - draws / 16) ** 2 / (draws / 16)).sum()
    assert torch.special.gammaincc(torch.tensor(7.5, dtype=torch.float64), statistic / 2) > 1e-3


@pytest.mark.parametrize("function", [sample, sample_twin])
def test_shapes_are_fixed(function):
    """Under FakeTensorMode a data-dependent op would raise."""
    with FakeTensorMode():
        table = SamplingTable.greedy(4, "cpu")
        rows = torch.zeros(6, dtype=torch.int64)
        choice = function(torch.zeros(6, 100, dtype=torch.bfloat16), rows, rows, table, sampled=True, filtered=True)
        assert choice.shape == (6,)
        assert choice.dtype == torch.int64
