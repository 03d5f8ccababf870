"""Log-probabilities against a softmax in double precision; their bits whatever stands beside a row."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from redraft.kernels.logprobs import CHUNK, Logprobs, logprobs

INF = float("inf")
pytestmark = pytest.mark.usefixtures("cpu_path")


def rows(N: int, V: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(N, V, generator=g) * 4).to(dtype), torch.randint(0, V, (N,), generator=g)


def assert_bits(got: Logprobs, want: Logprobs) -> None:
    for name in ("chosen", "rank", "token", "value"):
        assert torch.equal(getattr(got, name), getattr(want, name)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("V", [1, 63, 5000, 151_936])
def test_are_those_of_the_softmax(V: int, dtype: torch.dtype) -> None:
    """Tolerance: fp32's rounding of a logarithm near −30; the vocabulary is Qwen's at the largest."""
    logits, choice = rows(6, V, dtype)
    top = min(20, V)
    got = logprobs(logits, choice, top)
    exact = torch.log_softmax(logits.double(), 1)
    torch.testing.assert_close(got.chosen.double(), exact.gather(1, choice[:, None]).squeeze(1), atol=4e-6, rtol=0)
    torch.testing.assert_close(got.value.double(), exact.gather(1, got.token), atol=4e-6, rtol=0)
    for row in range(6):
        z = logits[row].tolist()
        order = sorted(range(V), key=lambda v, z=z: (-z[v], v))
        assert got.token[row].tolist() == order[:top]
        assert got.rank[row] == order.index(int(choice[row])) + 1


def test_flat_rows_sum_to_one() -> None:
    """The largest sum of truncated weights."""
    V = 200_000
    got = logprobs(torch.full((1, V), 3.0), torch.tensor([7]), 3)
    assert math.isclose(got.chosen.item(), -math.log(V), abs_tol=2e-6)
    assert got.token.tolist() == [[0, 1, 2]]
    assert got.rank.tolist() == [8]


def test_a_row_has_its_bits_wherever_it_stands() -> None:
    logits, choice = rows(2 * CHUNK + 3, 1001, torch.bfloat16)
    together = logprobs(logits, choice, 5)
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(1))
    shuffled = logprobs(logits[order], choice[order], 5)
    assert torch.equal(shuffled.value, together.value[order])
    assert torch.equal(shuffled.chosen, together.chosen[order])
    for row in (0, CHUNK - 1, CHUNK, len(logits) - 1):
        one = slice(row, row + 1)
        alone = logprobs(logits[one], choice[one], 5)
        assert_bits(alone, Logprobs(*(getattr(together, n)[one] for n in ("chosen", "rank", "token", "value"))))
    fewer = logprobs(logits, choice, 2)
    assert torch.equal(fewer.value, together.value[:, :2])


def test_rows_that_break_softmaxes() -> None:
    single, nan, infinite, hopeless = (torch.full((9,), -INF) for _ in range(4))
    single[4] = -3.0
    nan[:] = float("nan")
    nan[2] = 1.0
    infinite[:] = 0.0
    infinite[5] = INF
    got = logprobs(torch.stack([single, nan, infinite, hopeless]), torch.tensor([4, 2, 5, 0]), 2)
    assert got.chosen.tolist() == [0.0, 0.0, 0.0, -INF]
    assert got.token.tolist() == [[4, 0], [2, 0], [5, 0], [0, 1]]
    assert got.value[:3].tolist() == [[0.0, -INF], [0.0, -INF], [0.0, -torch.finfo(torch.float32).max]]


def test_no_tops_and_no_rows() -> None:
    logits, choice = rows(3, 20)
    got = logprobs(logits, choice, 0)
    assert (got.token.shape, got.value.shape) == ((3, 0), (3, 0))
    assert_bits(logprobs(logits[:0], choice[:0], 4), Logprobs(*(getattr(logprobs(logits, choice, 4), n)[:0]
                for n in ("chosen", "rank", "token", "value"))))  # fmt: skip


def test_shapes_are_fixed() -> None:
    with FakeTensorMode():
        got = logprobs(torch.zeros(70, 100, dtype=torch.bfloat16), torch.zeros(70, dtype=torch.int64), 5)
        assert (got.chosen.shape, got.rank.shape, got.token.shape) == ((70,), (70,), (70, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("V", [1, 5, 64, 65, 3000, 49152])
def test_compiled_rows_have_the_bits_of_torchs(
    monkeypatch: pytest.MonkeyPatch, V: int, dtype: torch.dtype, cpu_path: None
) -> None:
    """Many equal numbers, and rows of what is no ordinary one."""
    logits, choice = rows(20, V, dtype)
    logits[:4] = (logits[:4] / 4).round()
    special = torch.tensor([INF, -INF, float("nan"), -0.0, 0.0, 3e38, -3e38], dtype=dtype)
    g = torch.Generator().manual_seed(1)
    logits[4:9] = torch.where(
        torch.rand(5, V, generator=g) < 0.5, special[torch.randint(7, (5, V), generator=g)], logits[4:9]
    )
    logits[9], logits[10], logits[11] = -INF, float("nan"), 0.0
    logits[12, : V // 2] = -INF
    for top in {0, 1, min(20, V), min(64, V)}:
        got = logprobs(logits, choice, top)
        with monkeypatch.context() as patch:
            patch.setattr("redraft.kernels.vocab_cpu.load_fused", lambda: None)
            assert_bits(got, logprobs(logits, choice, top))
