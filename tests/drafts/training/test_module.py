"""The packed module against the formulas of DFlash, written out row by row, head by head (arXiv 2602.06036 §3)."""

import math

import pytest
import torch
from torch import Tensor

from redraft.drafts.training.module import rope_for

TEXTS = [(11, (0, 4, 5, 10)), (7, (1, 3)), (14, (13,))]
"""Lengths and anchors: at the very start, side by side, at the end; fewer in some texts than in others."""


def scaled(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean() + eps) * scale


def turned(x: Tensor, position: int, theta: float) -> Tensor:
    """One head's vector [HD] at ``position``, by the definition of ``rotate_half``."""
    half = x.shape[0] // 2
    angle = torch.tensor([position * theta ** (-2 * (i % half) / x.shape[0]) for i in range(2 * half)]).double()
    return x * angle.cos() + torch.cat((-x[half:], x[:half])) * angle.sin()


def literal(weights, config, taps: Tensor, anchor: int, block: Tensor) -> Tensor:
    """[B - 1, H] of one block of one text, from ``taps`` [S, n * H] and ``block`` [B, H], in fp64."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    taps, rows = taps.double(), list(block.double())
    eps, theta, width = config.norm_eps, config.rope_theta, config.head_dim
    context = [scaled(w["fc.weight"] @ taps[s], w["hidden_norm.weight"], eps) for s in range(anchor)]
    for number in range(config.layers):
        prefix = f"layers.{number}."
        own = {name.removeprefix(prefix): tensor for name, tensor in w.items() if name.startswith(prefix)}

        def split(x: Tensor, name: str, own=own) -> list[Tensor]:
            return list((own[f"self_attn.{name}_proj.weight"] @ x).split(width))

        def key(x: Tensor, position: int, own=own, split=split) -> list[Tensor]:
            return [turned(scaled(k, own["self_attn.k_norm.weight"], eps), position, theta) for k in split(x, "k")]

        normed = [scaled(x, own["input_layernorm.weight"], eps) for x in rows]
        keys = [key(x, s) for s, x in enumerate(context)] + [key(x, anchor + r) for r, x in enumerate(normed)]
        values = [split(x, "v") for x in (*context, *normed)]
        after = []
        for r, x in enumerate(normed):
            seen = anchor + (r + 1 if config.causal else config.block_size)
            heads = []
            for head, q in enumerate(split(x, "q")):
                q = turned(scaled(q, own["self_attn.q_norm.weight"], eps), anchor + r, theta)
                shared = head // (config.heads // config.kv_heads)
                scores = torch.stack([q @ keys[i][shared] / math.sqrt(width) for i in range(seen)])
                weight = scores.exp() / scores.exp().sum()
                heads.append(sum(weight[i] * values[i][shared] for i in range(seen)))
            x = rows[r] + own["self_attn.o_proj.weight"] @ torch.cat(heads)
            y = scaled(x, own["post_attention_layernorm.weight"], eps)
            gate = own["mlp.gate_proj.weight"] @ y
            after.append(
                x + own["mlp.down_proj.weight"] @ (gate / (1 + (-gate).exp()) * (own["mlp.up_proj.weight"] @ y))
            )
        rows = after
    return torch.stack([scaled(x, w["norm.weight"], eps) for x in rows[1:]])


def table(config, positions: int) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine as the module takes them."""
    half = config.head_dim // 2
    frequencies = [config.rope_theta ** (-i / half) for i in range(half)]
    angle = torch.outer(torch.arange(positions).double(), torch.tensor(frequencies).double())
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), 1).unsqueeze(1).float(), torch.cat((-sin, sin), 1).unsqueeze(1).float()


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_packed_pass_is_the_formulas_block_by_block(make_config, random_module, causal: bool, kv_heads: int) -> None:
    config = make_config(causal=causal, kv_heads=kv_heads)
    module = random_module(config).double()
    generator = torch.Generator().manual_seed(1)
    longest, most = max(size for size, _ in TEXTS), max(len(anchors) for _, anchors in TEXTS)
    # padding is noise, not zeros: nothing may depend on it
    taps = torch.randn(len(TEXTS), longest, 2 * config.hidden, generator=generator).double()
    block = torch.randn(len(TEXTS), most, config.block_size, config.hidden, generator=generator).double()
    anchor = torch.zeros(len(TEXTS), most, dtype=torch.int64)
    for text, (_, anchors) in enumerate(TEXTS):
        anchor[text, : len(anchors)] = torch.tensor(anchors)
    with torch.no_grad():
        packed = module(taps, anchor, block, table(config, longest + config.block_size))
    assert packed.shape == (len(TEXTS), most, config.block_size - 1, config.hidden)
    for text, (size, anchors) in enumerate(TEXTS):
        for i, at in enumerate(anchors):
            expected = literal(module.state_dict(), config, taps[text, :size], at, block[text, i])
            torch.testing.assert_close(packed[text, i], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layers", [1, 3])
def test_any_number_of_layers_and_rows(make_config, random_module, layers: int) -> None:
    """One layer is both the first and the last, whose anchor row is left out; two rows are the shortest block."""
    config = make_config(layers=layers, block_size=2, taps=(2,))
    module = random_module(config).double()
    taps, block = torch.randn(1, 6, config.hidden).double(), torch.randn(1, 2, 2, config.hidden).double()
    with torch.no_grad():
        packed = module(taps, torch.tensor([[2, 5]]), block, table(config, 8))
    for i, at in enumerate((2, 5)):
        expected = literal(module.state_dict(), config, taps[0], at, block[0, i])
        torch.testing.assert_close(packed[0, i], expected, rtol=0, atol=1e-6)


def test_parameters_have_the_published_names_and_shapes(make_config, random_module) -> None:
    config = make_config()
    found = {name: tuple(p.shape) for name, p in random_module(config).named_parameters()}
    assert found == config.shapes
    assert len(found) == 11 * config.layers + 3


def test_rotation_table(make_config) -> None:
    config = make_config()
    for made, expected in zip(rope_for(config, 64, torch.device("cpu")), table(config, 64), strict=True):
        torch.testing.assert_close(made, expected, rtol=0, atol=5e-6)  # fp32 angles up to 64
