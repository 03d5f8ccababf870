"""The target as a teacher: reads whole texts and hands out its states (``drafts.training.teacher.Teacher``).

Nothing here has to agree with serving bit for bit, so attention is torch's own, over texts padded to one length.
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

    def states(self, tokens: Sequence[int], taps: tuple[int, ...]) -> States:
        """Read one text, at most the target's context, in one pass."""
        return self.states_of([tokens], taps)[0]

    @torch.no_grad()
    def states_of(self, texts: Sequence[Sequence[int]], taps: tuple[int, ...]) -> list[States]:
        """Read texts together, padded behind their ends, where causal attention keeps the padding out of sight."""
        token, width = self._padded(texts)
        position = torch.arange(width, device=token.device).expand_as(token)
        final, found = self._read(token.flatten(), position.flatten(), _Together(len(texts), None), taps)
        tapped, final = found.view(len(texts), width, -1), final.view(len(texts), width, -1)
        return [
            States(tapped[number, : len(text)].clone(), final[number, : len(text)].clone())
            for number, text in enumerate(texts)
        ]

    @torch.no_grad()
    def behind(self, texts: Sequence[Sequence[int]], branches: Sequence[Sequence[Branch]]) -> list[Tensor]:
        """Read texts and, in the same pass, every branch behind its part of its text."""
        added = [list(chain.from_iterable(branch.tokens for branch in some)) for some in branches]
        token, text = self._padded(texts)
        more, _ = self._padded(added)
        token, rows = torch.cat((token, more), 1), more.shape[1]
        count, width = token.shape
        at, number, depth = torch.zeros(3, count, rows, dtype=torch.int64)
        for place, some in enumerate(branches):
            lengths = torch.tensor([len(branch.tokens) for branch in some], dtype=torch.int64)
            used = int(lengths.sum())
            at[place, :used] = torch.tensor([branch.at for branch in some]).repeat_interleave(lengths)
            number[place, :used] = torch.arange(len(some)).repeat_interleave(lengths)
            number[place, used:] = -1
            depth[place, :used] = torch.arange(used) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        device = token.device
        at, number, depth = at.to(device), number.to(device), depth.to(device)
        position = torch.cat((torch.arange(text, device=device).expand(count, text), at + depth), 1)
        sees = torch.ones(width, width, dtype=torch.bool, device=device).tril_().repeat(count, 1, 1)
        sees[:, text:, :text] = torch.arange(text, device=device) < at.unsqueeze(2)
        sees[:, text:, text:] &= number.unsqueeze(2) == number.unsqueeze(1)  # a branch's own rows, too
        final, _ = self._read(token.flatten(), position.flatten(), _Together(count, sees), (0,))
        final = final.view(count, width, -1)
        return [final[place, text : text + len(some)] for place, some in enumerate(added)]

    def _padded(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, int]:
        """[b, S] tokens, 0 behind the ends, and S."""
        width = max(*map(len, texts), 2)  # a single row takes another product's code
        rows = [[*text, *[0] * (width - len(text))] for text in texts]
        return torch.tensor(rows, dtype=torch.int64).to(self.target.device), width

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

    def _read(self, token: Tensor, position: Tensor, attend: Attention, taps: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """States [R, H] after the last norm, and [R, n, H] at ``taps``, of R rows that see one another as told."""
        spec, target, count = self.spec, self.target, len(token)
        dtype = torch.float32 if target.device.type == "cpu" else target.dtype
        kv = torch.empty(spec.layers, 2, count, spec.kv_heads, spec.head_dim, dtype=dtype, device=target.device)
        cell = torch.arange(count, device=target.device)
        hidden, tapped = target.forward_tapped(token, position, cell, kv, attend, taps)
        return target.ops.norm(hidden, target.weights.norm), tapped


class _Together:
    """Attention of b texts' rows, each over its own (``kernels.tree_attention.Attention``); ``q`` comes scaled."""

    def __init__(self, texts: int, sees: Tensor | None) -> None:
        """``sees`` [b, S, S] bool, or None: causal."""
        self.texts, self.sees = texts, None if sees is None else sees.unsqueeze(1)

    def __call__(self, q: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
        q, k, v = (t.to(key.dtype).view(self.texts, -1, *t.shape[1:]).transpose(1, 2) for t in (q, key, value))
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=self.sees, is_causal=self.sees is None, scale=1.0, enable_gqa=True
        )
        return out.transpose(1, 2).flatten(0, 1).to(dtype)
