"""The target decoder: packed rows in, hidden states out, keys and values written to paged KV.

One forward serves prefill, plain decoding and tree verification: it sees rows, each with a token, a position and a
cell, and an attention that knows their paths.  Nothing here depends on how many rows there are or to whom they belong.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from redraft.kernels.layer_ops import layer_ops, run_layer
from redraft.kernels.rope import rope_table
from redraft.kernels.tree_attention import Attention
from redraft.server.engine.target.spec import TargetSpec, inverse_frequencies
from redraft.server.engine.target.weights import Weights


class Target:
    """A Llama / Qwen2 / Qwen3 decoder over ``spec`` and ``weights``."""

    def __init__(self, spec: TargetSpec, weights: Weights, max_positions: int) -> None:
        self.spec = spec
        self.weights = weights
        self.device = weights.embedding.device
        self.dtype = weights.embedding.dtype
        frequencies = torch.tensor(inverse_frequencies(spec), device=self.device)
        cos, sin = rope_table(frequencies, max_positions)
        self.ops = layer_ops(
            cos,
            sin,
            heads=spec.heads,
            kv_heads=spec.kv_heads,
            eps=spec.norm_eps,
            dtype=self.dtype,
            width=max(2 * spec.intermediate, spec.query_width + 2 * spec.kv_width, spec.hidden),
        )

    def forward(self, token: Tensor, position: Tensor, cell: Tensor, kv: Tensor, attend: Attention) -> Tensor:
        """Run all layers over R rows.

        ``token``, ``position``, ``cell`` [R] int64; ``kv`` [L, 2, cells, HKV, HD] is written at ``cell``.  Returns the
        last layer's output [R, H], before the final norm.
        """
        return self._forward(token, position, cell, kv, attend, ())[0]

    def forward_tapped(
        self, token: Tensor, position: Tensor, cell: Tensor, kv: Tensor, attend: Attention, taps: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """``forward``, and the residual stream after the layers that ``taps`` names, at least one, [R, n, H].

        The layers' outputs are tensors anyway, so the gather of taps is ``stack``, one launch on a GPU whatever their
        number.
        """
        hidden, tapped = self._forward(token, position, cell, kv, attend, taps)
        return hidden, torch.stack([tapped[number] for number in taps], 1)

    def _forward(
        self, token: Tensor, position: Tensor, cell: Tensor, kv: Tensor, attend: Attention, taps: tuple[int, ...]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        hidden, tapped = functional.embedding(token, self.weights.embedding), dict[int, Tensor]()
        self.ops.turn(position, cell)
        for number, layer in enumerate(self.weights.layers):
            hidden = run_layer(self.ops, layer, hidden, kv[number], attend)
            if number in taps:
                tapped[number] = hidden
        return hidden, tapped

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, H] -> [R, V] in the target's dtype."""
        return self.ops.project(hidden, self.weights.norm, self.weights.head)
