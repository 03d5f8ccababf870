"""The target as a teacher: reads whole texts and hands out its states (``drafts.training.teacher.Teacher``).

Nothing here has to agree with serving bit for bit, so attention is torch's own over one text in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from redraft.drafts.training.teacher import States
from redraft.server.engine.target.decoder import Target
from redraft.server.engine.target.spec import TargetSpec
from redraft.server.engine.target.weights import Checkpoint, head_tensor, load_weights


class TargetTeacher:
    """A frozen target."""

    def __init__(self, folder: Path, spec: TargetSpec, identity: str, device: torch.device, dtype: torch.dtype) -> None:
        self.identity, self.spec = identity, spec
        weights = load_weights(folder, spec, device, dtype)
        self.embedding = weights.embedding
        self.checkpoint = Checkpoint(folder)
        self.head = head_tensor(folder, spec, weights)
        self.target = Target(spec, weights, spec.context)

    @torch.no_grad()
    def states(self, tokens: Sequence[int], taps: tuple[int, ...]) -> States:
        """Read ``tokens``, at most the target's context, in one pass."""
        spec, target = self.spec, self.target
        count, device = max(len(tokens), 2), target.device  # a single row takes another product's code
        text = torch.zeros(count, dtype=torch.int64, device=device)
        text[: len(tokens)] = torch.tensor(tokens)
        position = torch.arange(count, device=device)
        dtype = torch.float32 if device.type == "cpu" else target.dtype
        kv = torch.empty(spec.layers, 2, count, spec.kv_heads, spec.head_dim, dtype=dtype, device=device)
        found = torch.empty(count, len(taps), spec.hidden, dtype=target.dtype, device=device)
        hidden = target.forward(text, position, position, kv, _causal, found, taps)
        final = target.ops.norm(hidden, target.weights.norm)
        return States(found.flatten(1)[: len(tokens)], final[: len(tokens)])

    def weight(self, name: str) -> Tensor:
        """A tensor of the checkpoint, as it is stored."""
        return self.checkpoint[name]

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoint


def _causal(q: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Attention of one text over itself (``kernels.tree_attention.Attention``); ``q`` [R, HQ, HD] comes scaled."""
    q, k, v = (t.to(key.dtype).transpose(0, 1).unsqueeze(0) for t in (q, key, value))
    out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0, enable_gqa=True)
    return out[0].transpose(0, 1).to(dtype)
