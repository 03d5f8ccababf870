"""A whole target through the GPU's layers, interpreted: the same hidden states, cache and logits as in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from redraft.kernels.layer_gpu import GpuOps
from redraft.kernels.layer_torch import TorchOps
from redraft.kernels.matmul import matmul_kernel
from redraft.kernels.rows import Rows
from redraft.kernels.tree_attention import CHUNK, TwinAttention
from redraft.kernels.triton_support import INTERPRETED
from redraft.server.engine.target.decoder import Target
from redraft.server.engine.target.spec import read_spec
from redraft.server.engine.target.weights import load_weights

ROWS = 35
"""Two tiles of rows."""


def run(folder: Path) -> tuple[Target, Tensor, Tensor, Tensor]:
    """Target, hidden states, cache and logits of ``ROWS`` tokens of prefill."""
    spec = read_spec(folder)
    target = Target(spec, load_weights(folder, spec, torch.device("cpu"), torch.float32), 256)
    number = torch.arange(ROWS)
    zeros = torch.zeros_like(number)
    rows = Rows(number + 7, zeros, number, zeros, number, zeros, zeros.unsqueeze(1), zeros[:2], zeros[:2])
    kv = torch.zeros(spec.layers, 2, 2 * CHUNK, spec.kv_heads, spec.head_dim)
    attend = TwinAttention(rows, torch.tensor([[1], [0]]), ROWS)
    hidden = target.forward(rows.token, number, CHUNK + number, kv, attend)
    return target, hidden, kv, target.logits(hidden)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_layers(family: str, random_target: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    if not INTERPRETED:
        pytest.skip("on a GPU the suite's checks say it; here kernels are interpreted, which takes TRITON_INTERPRET=1")
    monkeypatch.setattr("redraft.kernels.linear.prepacks", lambda device, dtype: False)
    monkeypatch.setattr("redraft.kernels.layer_ops.load_fused", lambda: None)
    plain = run(random_target(family))
    products = []

    def counted(*arguments: Tensor, **options: Tensor) -> Tensor:
        products.append(1)
        return matmul_kernel(*arguments, **options)  # type: ignore[arg-type]

    for module in ("linear", "layer_ops"):
        monkeypatch.setattr(f"redraft.kernels.{module}.use_triton", lambda *tensors: True)
    for module in ("linear", "layer_gpu"):
        monkeypatch.setattr(f"redraft.kernels.{module}.matmul_kernel", counted)
    gpu = run(random_target(family))
    assert (type(plain[0].ops), type(gpu[0].ops)) == (TorchOps, GpuOps)
    for made, wanted in zip(gpu[1:], plain[1:], strict=True):
        # fp32 sums in other orders, through two layers
        torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)
    assert len(products) == 4 * gpu[0].spec.layers + 1, "a layer has four products, norms and SwiGLU inside"
