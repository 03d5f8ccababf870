"""The target as a teacher: reads whole texts and hands out its states (``drafts.training.teacher.Teacher``).

Nothing here has to agree with serving bit for bit, so attention is torch's own over one text in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from redraft.drafts.training.flops import product
from redraft.drafts.training.teacher import Branch, States
from redraft.kernels.tree_attention import Attention
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
        count, device = max(len(tokens), 2), self.target.device  # a single row takes another product's code
        text = torch.zeros(count, dtype=torch.int64, device=device)
        text[: len(tokens)] = torch.tensor(tokens)
        found = torch.empty(count, len(taps), self.spec.hidden, dtype=self.target.dtype, device=device)
        final = self._read(text, torch.arange(count, device=device), _causal, found, taps)
        return States(found.flatten(1)[: len(tokens)], final[: len(tokens)])

    @torch.no_grad()
    def behind(self, tokens: Sequence[int], branches: Sequence[Branch]) -> Tensor:
        """Read ``tokens`` and, in the same pass, every branch behind its part of them."""
        device, text = self.target.device, len(tokens)
        lengths = torch.tensor([len(branch.tokens) for branch in branches])
        at = torch.tensor([branch.at for branch in branches]).repeat_interleave(lengths).to(device)
        branch = torch.arange(len(branches)).repeat_interleave(lengths).to(device)
        depth = torch.cat([torch.arange(len(branch.tokens)) for branch in branches]).to(device)
        token = torch.tensor([*tokens, *chain.from_iterable(branch.tokens for branch in branches)], device=device)
        position = torch.cat((torch.arange(text, device=device), at + depth))
        sees = torch.ones(len(token), len(token), dtype=torch.bool, device=device).tril_()  # a branch's own rows, too
        sees[text:, :text] = torch.arange(text, device=device) < at.unsqueeze(1)
        sees[text:, text:] &= branch == branch.unsqueeze(1)
        return self._read(token, position, _Masked(sees))[text:]

    def flops(self, rows: int, behind: int = 0) -> int:
        """Operations of one such pass; attention as dense as it is computed."""
        spec, count = self.spec, max(rows, 2) + behind
        layer = product(count, spec.hidden, 2 * spec.query_width + 2 * spec.kv_width + 3 * spec.intermediate)
        attention = 2 * spec.heads * product(count, spec.head_dim, count)
        return spec.layers * (layer + attention)

    def weight(self, name: str) -> Tensor:
        """A tensor of the checkpoint, as it is stored."""
        return self.checkpoint[name]

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoint

    def _read(
        self,
        token: Tensor,
        position: Tensor,
        attend: Attention,
        taps: Tensor | None = None,
        tap_layers: tuple[int, ...] = (),
    ) -> Tensor:
        """[R, H] states after the last norm of R rows that see one another as ``attend`` says."""
        spec, target, count = self.spec, self.target, len(token)
        dtype = torch.float32 if target.device.type == "cpu" else target.dtype
        kv = torch.empty(spec.layers, 2, count, spec.kv_heads, spec.head_dim, dtype=dtype, device=target.device)
        cell = torch.arange(count, device=target.device)
        hidden = target.forward(token, position, cell, kv, attend, taps, tap_layers)
        return target.ops.norm(hidden, target.weights.norm)


class _Masked:
    """Attention of one pass's rows over one another (``kernels.tree_attention.Attention``); ``q`` comes scaled."""

    def __init__(self, sees: Tensor | None) -> None:
        """``sees`` [R, R] bool, or None: causal."""
        self.sees = sees

    def __call__(self, q: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
        q, k, v = (t.to(key.dtype).transpose(0, 1).unsqueeze(0) for t in (q, key, value))
        causal = self.sees is None
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=self.sees, is_causal=causal, scale=1.0, enable_gqa=True
        )
        return out[0].transpose(0, 1).to(dtype)


_causal = _Masked(None)
