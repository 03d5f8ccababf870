"""Noise: Philox against its authors' vectors, the formula in double precision, bits that depend on (s, t, v) alone."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from redraft.kernels.noise import (
    HIGHEST,
    LOWEST,
    gumbel_kernel,
    gumbel_of_uniform,
    gumbel_twin,
    log_fp32,
    philox_words,
    uniform_of_word,
)

FULL = 0xFFFFFFFF

# kat_vectors of Random123, philox4x32 with 10 rounds: counter, key, output
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((FULL, FULL, FULL, FULL), (FULL, FULL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def python_word(seed: int, t: int, v: int) -> int:
    """The Philox word of (s, t, v) in Python's integers."""
    c, k = [v // 4, t % 2**32, 0, 0], [seed % 2**32, (seed >> 32) % 2**32]
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32) ^ c[1] ^ k[0], b % 2**32, (a >> 32) ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c[v % 4]


@pytest.mark.parametrize("as_tensors", [True, False])
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, expected, as_tensors):
    rest = [torch.tensor([word]) if as_tensors else word for word in counter[1:]]
    words = philox_words(*key, torch.tensor([counter[0]]), *rest)
    assert tuple(int(word) for word in words) == expected


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF])
@pytest.mark.parametrize("t", [0, 1, 8191])
def test_noise_is_the_formula(seed, t):
    """Catches a wrong word order, a seed whose high word or sign is lost, and a wrong lane."""
    ids = [0, 1, 2, 3, 4, 49151, 151935]
    got = gumbel_twin(torch.tensor([seed]), torch.tensor([t]), torch.tensor([ids]))[0]
    uniform = [min((python_word(seed, t, v) + 1) * 2.0**-32, 1 - 2.0**-24) for v in ids]
    expected = [-math.log(-math.log1p(-u)) for u in uniform]
    assert got.tolist() == pytest.approx(expected, abs=2e-6)


def test_noise_is_precise_over_its_whole_range():
    """Catches cancellation near u = 0, u = 1 and E = 1; 2e-6 is one unit in the last place of the largest values."""
    generator = torch.Generator().manual_seed(0)
    words = torch.cat(
        [
            torch.arange(10_000),
            torch.arange(2**32 - 10_000, 2**32),
            torch.randint(0, 2**32, (200_000,), generator=generator),
            int((1 - math.exp(-1)) * 2**32) + torch.arange(-5000, 5000),
        ]
    )
    u = uniform_of_word(words)
    expected = -torch.log(-torch.log1p(-u.double()))
    got = gumbel_of_uniform(u)
    assert (got - expected).abs().max() < 2e-6
    assert LOWEST < got.min() < LOWEST + 0.01
    assert HIGHEST - 0.01 < got.max() < HIGHEST


def test_log_is_precise():
    x = torch.logspace(-37, 38, 100_001, dtype=torch.float64).float()
    expected = x.double().log()
    assert ((log_fp32(x) - expected).abs() / expected.abs().clamp(min=1)).max() < 1.5e-7
    assert log_fp32(torch.ones(1)).item() == 0.0


def test_bits_do_not_depend_on_the_place_in_the_tensor():
    """Catches loops whose vectorised part and tail round differently."""
    seed, t, ids = torch.tensor([7]), torch.tensor([12]), torch.arange(1003)[None]
    whole = gumbel_twin(seed, t, ids)[0]
    for n in (1, 2, 7, 15, 16, 17, 31, 100):
        assert torch.equal(gumbel_twin(seed, t, ids[:, -n:])[0], whole[-n:])
    order = torch.randperm(1003, generator=torch.Generator().manual_seed(1))
    assert torch.equal(gumbel_twin(seed, t, ids[:, order])[0], whole[order])
    among = gumbel_twin(torch.tensor([3, 7, 9]), torch.tensor([1, 12, 5]), ids.expand(3, -1))
    assert torch.equal(among[1], whole)
    assert not torch.equal(among[0], whole)


@pytest.mark.parametrize("n", [1, 63, 1000, 1025])
def test_kernel_equals_twin_bit_for_bit(kernel_device, poisoned, n):
    generator = torch.Generator().manual_seed(n)
    seed = torch.tensor([5, -7, 2**63 - 1], device=kernel_device)
    t = torch.tensor([0, 9, 2**20], device=kernel_device)
    ids = torch.randint(0, 151936, (3, n), generator=generator).to(kernel_device)
    with poisoned():
        got = gumbel_kernel(seed, t, ids)
    assert torch.equal(got, gumbel_twin(seed, t, ids))


def test_twin_has_no_data_dependent_op():
    with FakeTensorMode():
        seed, t = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
        assert gumbel_twin(seed, t, torch.zeros(3, 50, dtype=torch.int64)).shape == (3, 50)


def test_kernel_refuses_what_it_cannot_read(kernel_device):
    seed = torch.zeros(2, dtype=torch.int64, device=kernel_device)
    with pytest.raises(ValueError, match=r"ids must be torch\.int64, but is torch\.int32"):
        gumbel_kernel(seed, seed, torch.zeros(2, 4, dtype=torch.int32, device=kernel_device))
    with pytest.raises(ValueError, match="one element for each of the 3 rows"):
        gumbel_kernel(seed, seed, torch.zeros(3, 4, dtype=torch.int64, device=kernel_device))
    with pytest.raises(ValueError, match="ids must be contiguous"):
        gumbel_kernel(seed, seed, torch.zeros(4, 2, dtype=torch.int64, device=kernel_device).t())
