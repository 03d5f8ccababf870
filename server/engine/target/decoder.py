"""The target decoder: packed rows in, hidden states out, keys and values written to paged KV.

One forward serves prefill, plain decoding and tree verification: it sees rows, each with a token, a position and a
cell, and an attention that knows their paths.  Nothing here depends on how many rows there are or to whom they belong.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from redraft.kernels.rms_norm import rms_norm
from redraft.kernels.rope import apply_rope, rope_table
from redraft.kernels.tree_attention import Attention
from redraft.server.engine.target.spec import TargetSpec, inverse_frequencies
from redraft.server.engine.target.weights import Layer, Weights


class Target:
    """A Llama / Qwen2 / Qwen3 decoder over ``spec`` and ``weights``."""

    def __init__(self, spec: TargetSpec, weights: Weights, max_positions: int) -> None:
        self.spec = spec
        self.weights = weights
        self.device = weights.embedding.device
        self.dtype = weights.embedding.dtype
        frequencies = torch.tensor(inverse_frequencies(spec), device=self.device)
        self.cos, self.sin = rope_table(frequencies, max_positions)
        scales = [spec.head_dim**-0.5] * spec.heads + [1.0] * spec.kv_heads
        self.head_scale = torch.tensor(scales, device=self.device).unsqueeze(1)

    def forward(
        self,
        token: Tensor,
        position: Tensor,
        cell: Tensor,
        kv: Tensor,
        attend: Attention,
        taps: Tensor | None = None,
        tap_layers: tuple[int, ...] = (),
    ) -> Tensor:
        """Run all layers over R rows.

        ``token``, ``position``, ``cell`` [R] int64; ``kv`` [L, 2, cells, HKV, HD] is written at ``cell``.  The residual
        stream after each layer of ``tap_layers`` goes to ``taps`` [R, n, H].  Returns the last layer's output [R, H],
        before the final norm.
        """
        hidden = functional.embedding(token, self.weights.embedding)
        # [R, HQ + HKV, HD]: attention's 1 / sqrt(HD) rides on the queries' rotation
        cos = self.cos.index_select(0, position) * self.head_scale
        sin = self.sin.index_select(0, position) * self.head_scale
        for number, layer in enumerate(self.weights.layers):
            hidden = self._attention(layer, hidden, cos, sin, cell, kv[number], attend)
            hidden = self._mlp(layer, hidden)
            if taps is not None and number in tap_layers:
                taps[:, tap_layers.index(number)] = hidden
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, H] -> [R, V] in the target's dtype."""
        return self.weights.head(rms_norm(hidden, self.weights.norm, self.spec.norm_eps))

    def _attention(
        self, layer: Layer, hidden: Tensor, cos: Tensor, sin: Tensor, cell: Tensor, kv: Tensor, attend: Attention
    ) -> Tensor:
        spec = self.spec
        turned = spec.heads + spec.kv_heads
        qkv = layer.qkv(rms_norm(hidden, layer.input_norm, spec.norm_eps)).float()
        qkv = qkv.view(-1, turned + spec.kv_heads, spec.head_dim)
        qk = qkv[:, :turned]
        if layer.qk_norm is not None:
            qk = rms_norm(qk, None, spec.norm_eps) * layer.qk_norm
        qk = apply_rope(qk, cos, sin)
        kv[0].index_copy_(0, cell, qk[:, spec.heads :].to(kv.dtype))
        kv[1].index_copy_(0, cell, qkv[:, turned:].to(kv.dtype))
        out = attend(qk[:, : spec.heads], kv[0], kv[1], self.dtype)
        return layer.output(out.reshape(-1, spec.query_width), hidden)

    def _mlp(self, layer: Layer, hidden: Tensor) -> Tensor:
        gate, up = layer.gate_up(rms_norm(hidden, layer.post_norm, self.spec.norm_eps)).chunk(2, -1)
        return layer.down(functional.silu(gate).mul_(up), hidden)
