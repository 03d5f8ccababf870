"""marginals against a literal reading of its definition; the Triton kernels against their twins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from redraft.kernels.block_tops import ABSENT, block_size, block_tops_kernel, block_tops_twin, flip_device
from redraft.kernels.marginals import MAX_KEPT, Noise, marginals, marginals_kernel, marginals_twin
from redraft.kernels.noise import gumbel_twin

N, D = 2, 2
SCALE = torch.tensor([0.7, 1.9])


def random_logits(columns: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(N, D, columns, generator=generator) * 4).to(dtype)


def random_noise(slots: bool) -> Noise:
    seed, heat = torch.tensor([2**62 + 3, 9, -5]), torch.tensor([0.9, 0.0, 0.8])
    first = torch.tensor([2**33, 17])
    if slots:
        return Noise(seed, first, heat, torch.tensor([2, 1]))
    return Noise(seed[[2, 1]].contiguous(), first, heat[[2, 1]].contiguous())


def literal(
    logits: Tensor, branch: int, vocabulary: Tensor | None, noise: Noise | None, own: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Row by row, in double precision, equals in the order of their columns."""
    tokens, values = [], []
    for block in range(N):
        for depth in range(D):
            z = logits[block, depth].float() / SCALE[depth]
            z = torch.where(z.isnan(), -torch.inf, z)
            ids = torch.arange(len(z)) if vocabulary is None else vocabulary
            ids = ids if own is None else torch.cat((ids, own[block]))
            order = z.sort(descending=True, stable=True).indices
            total = z.double().logsumexp(0)
            key = block if noise is None or noise.slot is None else int(noise.slot[block])
            if noise is not None and noise.temperature[key] > 0:
                order = order[: max(32, branch)]
                at = noise.seed[key : key + 1], noise.first[block : block + 1] + depth
                z[order] += noise.temperature[key] * (gumbel_twin(*at, ids[order][None])[0] / SCALE[depth])
                total = z[order].double().logsumexp(0)
                order = order[z[order].sort(descending=True, stable=True).indices]
            tokens.append(ids[order[:branch]])
            values.append((z[order[:branch]] - total).float().nan_to_num_(nan=-torch.inf, neginf=-torch.inf))
    return torch.stack(tokens).view(N, D, -1), torch.stack(values).view(N, D, -1)


def on(device: torch.device, noise: Noise | None) -> Noise | None:
    if noise is None:
        return None
    slot = None if noise.slot is None else noise.slot.to(device)
    return Noise(noise.seed.to(device), noise.first.to(device), noise.temperature.to(device), slot)


@pytest.mark.parametrize(
    ("dtype", "columns", "branch", "block", "slots", "pruned", "own"),
    [
        (torch.bfloat16, 97, 8, 32, None, False, 0),
        (torch.float16, 97, 1, 32, None, True, 0),
        (torch.float32, 64, 64, 64, None, False, 0),
        (torch.bfloat16, 66, 3, 32, True, True, 0),
        (torch.float32, 66, 3, 32, False, True, 5),
        (torch.float16, 70, 35, 64, True, False, 0),
        (torch.bfloat16, 7, 8, 8, False, True, 2),
        (torch.float32, 1, 2, 1, None, False, 0),
    ],
)
def test_kernels_take_the_best_equals_in_order(
    dtype: torch.dtype,
    columns: int,
    branch: int,
    block: int,
    slots: bool | None,
    pruned: bool,
    own: int,
    kernel_device: torch.device,
    poisoned: Callable[..., Any],
) -> None:
    """bf16 logits have many equals.  The twin's torch promises no order of those, so its tokens are not compared."""
    logits = random_logits(columns, dtype)
    logits[0, 0, ::5] = torch.nan
    vocabulary = torch.arange(columns - own) * 3 + 1 if pruned else None
    mine = torch.arange(N * own).view(N, own) * 3 + 300 if own else None
    noise = None if slots is None else random_noise(slots)
    wanted = literal(logits, branch, vocabulary, noise, mine)
    here = [None if t is None else t.to(kernel_device) for t in (logits, SCALE, vocabulary, mine)]
    assert here[0] is not None
    assert here[1] is not None
    # between blocks lies a row that is not looked at
    wide = torch.cat((torch.full_like(here[0][:, :1], 99.0), here[0]), 1)[:, 1:]
    with poisoned():
        token, value = marginals_kernel(wide, here[1], branch, here[2], on(kernel_device, noise), here[3], block=block)
    assert torch.equal(token.cpu(), wanted[0])
    torch.testing.assert_close(value.cpu(), wanted[1], rtol=1e-5, atol=1e-5)
    twin = marginals_twin(logits, SCALE, branch, vocabulary, noise, mine)
    torch.testing.assert_close(twin[1], wanted[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("slots", "own"), [(None, 4), (False, 0), (True, 4)])
def test_kernel_equals_twin(slots: bool | None, own: int, kernel_device: torch.device) -> None:
    logits, columns = random_logits(97, seed=own), 97
    vocabulary, noise = torch.randperm(2000)[: columns - own], None if slots is None else random_noise(slots)
    mine = torch.randint(2000, 3000, (N, own)) if own else None
    wanted = marginals_twin(logits, SCALE, 8, vocabulary, noise, mine)
    here = [None if t is None else t.to(kernel_device) for t in (logits, SCALE, vocabulary, mine)]
    token, value = marginals_kernel(*here[:2], 8, here[2], on(kernel_device, noise), here[3], block=32)  # type: ignore[arg-type]
    assert torch.equal(token.cpu(), wanted[0])
    torch.testing.assert_close(value.cpu(), wanted[1], rtol=1e-5, atol=1e-5)


def test_blocks_of_one_row(kernel_device: torch.device) -> None:
    """As a draft that grows its tree depth by depth has them, with a scale out of the midst of a table."""
    logits, noise = random_logits(40).view(N * D, 1, 40), random_noise(False)
    each = Noise(*(key.repeat_interleave(D) for key in (noise.seed, noise.first, noise.temperature)))
    wanted = marginals_twin(logits, SCALE[1:2], 5, None, each)
    made = marginals_kernel(logits.to(kernel_device), SCALE.to(kernel_device)[1:2], 5, None, on(kernel_device, each))
    assert torch.equal(made[0].cpu(), wanted[0])
    torch.testing.assert_close(made[1].cpu(), wanted[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("slots", [None, True])
@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), float("inf")])
def test_broken_logits_give_tokens_that_exist(slots: bool | None, bad: float, kernel_device: torch.device) -> None:
    logits = random_logits(12)
    logits[0] = bad
    noise = None if slots is None else random_noise(slots)
    for op in (marginals_twin, marginals_kernel):
        where = torch.device("cpu") if op is marginals_twin else kernel_device
        token, value = op(logits.to(where), SCALE.to(where), 8, None, on(where, noise))
        assert ((token >= 0) & (token < 12)).all()
        assert all(len(set(row)) == 8 for row in token.flatten(0, 1).tolist())
        assert not value.isnan().any()
        assert (value[0] == -torch.inf).all() == (bad != torch.inf)
        assert (value[1] > -torch.inf).all()


@pytest.mark.parametrize(("columns", "block"), [(97, 16), (64, 16), (130, 64)])
def test_tops_of_blocks(columns: int, block: int, kernel_device: torch.device, poisoned: Callable[..., Any]) -> None:
    """Also of the last block, which has fewer columns than are kept."""
    logits = random_logits(columns, torch.bfloat16)
    logits[1, 0, :20] = -torch.inf
    wanted = block_tops_twin(logits, SCALE, 8, block)
    with poisoned():
        made = block_tops_kernel(logits.to(kernel_device), SCALE.to(kernel_device), 8, block)
    real = wanted.rank > ABSENT
    assert int(real.sum(-1).min()) == min(8, (columns - 1) % block + 1)
    assert torch.equal(made.rank.cpu(), wanted.rank)
    assert torch.equal(made.column.cpu()[real], wanted.column[real])
    assert torch.equal(made.highest.cpu(), wanted.highest)
    torch.testing.assert_close(made.share.cpu(), wanted.share)
    number = flip_device.fn(wanted.rank).view(torch.float32)[real]
    assert torch.isin(number, logits.float() / SCALE.unsqueeze(1) + 0.0).all()


@pytest.mark.parametrize("columns", [1, 5, 97, 1024, 16_384, 49_152, 151_936, 300_000])
def test_one_program_can_hold_what_the_blocks_leave(columns: int) -> None:
    block = block_size(columns)
    assert block & (block - 1) == 0
    assert -(-columns // block) <= 128
    assert block >= min(columns, MAX_KEPT)


def test_no_shape_needs_data() -> None:
    with FakeTensorMode():
        logits, ids = torch.zeros(N, D, 50), torch.zeros(50, dtype=torch.int64)
        seed, heat = torch.zeros(N, dtype=torch.int64), torch.zeros(N)
        token, value = marginals(logits, torch.ones(D), 8, ids, Noise(seed, seed, heat))
        assert token.shape == value.shape == (N, D, 8)


def test_no_blocks_are_no_rows(kernel_device: torch.device) -> None:
    token, value = marginals_kernel(torch.zeros(0, D, 9).to(kernel_device), SCALE.to(kernel_device), 4, None, None)
    assert token.shape == value.shape == (0, D, 4)


def test_kernel_names_what_does_not_fit(kernel_device: torch.device) -> None:
    logits, scale = random_logits(20).to(kernel_device), SCALE.to(kernel_device)
    ids = torch.arange(19, device=kernel_device)
    with pytest.raises(ValueError, match="keep 1 to 64 tokens of a row, not 65"):
        marginals_kernel(logits, scale, 65, None, None)
    with pytest.raises(ValueError, match="20 columns, but there are ids for 19"):
        marginals_kernel(logits, scale, 4, ids, None)
    with pytest.raises(ValueError, match="beside a vocabulary"):
        marginals_kernel(logits, scale, 4, None, None, ids[:2].view(N, 1))
    with pytest.raises(ValueError, match="one number for each of 2 depths, not 1"):
        marginals_kernel(logits, scale[:1], 4, None, None)
    with pytest.raises(ValueError, match=r"noise\.first must have 2 elements, but has 3"):
        marginals_kernel(logits, scale, 4, None, Noise(ids[:2], ids[:3], scale))
    with pytest.raises(ValueError, match="of a block of 8 can be kept, not 32"):
        block_tops_kernel(logits, scale, 32, 8)
