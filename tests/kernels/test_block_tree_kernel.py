"""block_tree's kernel and compiled C against their twin, which other tests hold against the definition."""

import math

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from redraft.kernels import block_tree as module
from redraft.kernels.block_tree import MAX_CANDIDATES, MAX_NODES, block_tree_kernel, block_tree_twin

Inputs = tuple[Tensor, Tensor, Tensor]
TIED = st.sampled_from([0.0, -0.0, -0.25, -0.25, -0.5, -1.0])
"""Multiples of 1/4, whose fp32 sums are exact: equal products are ties."""
ANY = st.floats(-9.0, 0.0, width=32)
ODD = st.sampled_from([-math.inf, math.nan, 1e-7, math.inf, -90.0])
"""What is absent, what rounding put above 0, what no draft should say, and products that round to 0."""


@st.composite
def candidates(draw: st.DrawFn) -> Inputs:
    """Of up to three trees, in whatever order, their probabilities given by candidate or by pair."""
    N, D, K = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    shape = draw(st.sampled_from([(N, D, K), (N, D, K, K)]))
    value = draw(st.sampled_from([TIED, ANY])) | ODD
    size = math.prod(shape)
    logprob = torch.tensor(draw(st.lists(value, min_size=size, max_size=size))).view(shape)
    return torch.arange(1, N + 1), 100 + torch.arange(N * D * K).view(N, D, K), logprob


def assert_kernel_is_twin(inputs: Inputs, nodes: int, device: torch.device, poisoned, run=block_tree_kernel) -> None:
    """Nodes and order to the byte, for costs are summed alike; scores but for the last place of an exponential."""
    wanted = block_tree_twin(*inputs, nodes)
    moved = [tensor.to(device) for tensor in inputs]
    copies = [tensor.clone() for tensor in moved]
    with poisoned():
        token, parent, score = (tensor.cpu() for tensor in run(*moved, nodes))
    absent = wanted[2] == -math.inf
    assert token.dtype == parent.dtype == torch.int64
    assert torch.equal(token, wanted[0].masked_fill(absent, 0))
    assert torch.equal(parent, wanted[1])
    assert torch.equal(score == -math.inf, absent)
    torch.testing.assert_close(score, wanted[2], rtol=2.4e-7, atol=1e-44)
    for before, after in zip(copies, moved, strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(inputs=candidates(), nodes=st.integers(1, 12) | st.just(33))
@example((torch.tensor([1]), torch.zeros(1, 1, 1).long(), torch.tensor([[[math.nan]]])), 1)
@example((torch.tensor([1]), torch.arange(12).view(1, 4, 3), torch.tensor([[[0.0, 0.0, -0.0]] * 4])), 12)
def test_kernel_is_the_twin(kernel_device: torch.device, poisoned, inputs: Inputs, nodes: int) -> None:
    assert_kernel_is_twin(inputs, nodes, kernel_device, poisoned)


@pytest.mark.parametrize(
    ("depths", "width", "nodes"), [(15, 8, 15), (16, 8, MAX_NODES), (1, MAX_CANDIDATES, 32), (3, 17, 1)]
)
@pytest.mark.parametrize("paired", [False, True])
def test_kernel_is_the_twin_at_full_size(
    kernel_device: torch.device, poisoned, depths: int, width: int, nodes: int, paired: bool
) -> None:
    """In whole quarters, so that many of the prefixes that just fit are tied with some that do not."""
    torch.manual_seed(depths)
    shape = (2, depths, width, width) if paired else (2, depths, width)
    logprob = -torch.randint(0, 9, shape) / 4
    inputs = (torch.tensor([7, 9]), torch.randint(0, 2**40, (2, depths, width)), logprob)
    assert_kernel_is_twin(inputs, nodes, kernel_device, poisoned)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(inputs=candidates(), nodes=st.integers(1, MAX_NODES))
def test_compiled_is_the_twin(compiled, poisoned, inputs: Inputs, nodes: int) -> None:
    with compiled(module):
        assert_kernel_is_twin(inputs, nodes, torch.device("cpu"), poisoned, module.block_tree)


@pytest.mark.parametrize(("depths", "width", "nodes"), [(15, 8, 15), (16, 8, MAX_NODES), (1, 70, 63), (3, 17, 1)])
@pytest.mark.parametrize("paired", [False, True])
def test_compiled_is_the_twin_at_full_size(
    compiled, poisoned, depths: int, width: int, nodes: int, paired: bool
) -> None:
    torch.manual_seed(depths)
    shape = (2, depths, width, width) if paired else (2, depths, width)
    tokens = torch.randint(0, 2**40, (2, depths, width))
    for logprob in (-torch.randint(0, 9, shape) / 4, torch.randn(shape)):
        inputs = (torch.tensor([7, 9]), tokens, logprob)
        with compiled(module):
            assert_kernel_is_twin(inputs, nodes, torch.device("cpu"), poisoned, module.block_tree)


@pytest.mark.parametrize("width", [4, MAX_CANDIDATES + 1])
def test_whatever_the_twin_takes_a_gpu_takes(
    kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """Candidates that lie apart in memory, and more of them than the kernel keeps."""
    monkeypatch.setattr(module, "use_triton", lambda *tensors: True)
    torch.manual_seed(0)
    logprob = (-torch.randint(0, 9, (1, 3, width)) / 4).unsqueeze(2).expand(-1, -1, width, -1)
    inputs = torch.tensor([7]), torch.arange(width * 3).view(1, width, 3).transpose(1, 2), logprob
    made = module.block_tree(*(tensor.to(kernel_device) for tensor in inputs), 12)
    for found, wanted in zip(made, block_tree_twin(*inputs, 12), strict=True):
        torch.testing.assert_close(found.cpu(), wanted, rtol=2.4e-7, atol=0)


def test_kernel_names_what_it_cannot_take(kernel_device: torch.device) -> None:
    def call(width: int, nodes: int, dtype: torch.dtype) -> None:
        top = torch.zeros(1, 2, width, device=kernel_device)
        block_tree_kernel(top[:, 0, 0].long(), top.long(), top.to(dtype), nodes)

    with pytest.raises(ValueError, match="there may be 32 candidates of 65534 depths, but top_token has 33 of 2"):
        call(MAX_CANDIDATES + 1, 5, torch.float32)
    with pytest.raises(ValueError, match=r"top_logprob must be torch\.float32"):
        call(4, 5, torch.bfloat16)
    with pytest.raises(ValueError, match="nodes must be 1 to 63"):
        call(4, MAX_NODES + 1, torch.float32)
    with pytest.raises(ValueError, match=r"must be \[N\], \[N, D, K\] and"):
        block_tree_kernel(*(torch.zeros(shape, device=kernel_device) for shape in ((2,), (1, 2, 3), (1, 2, 3))), 5)
