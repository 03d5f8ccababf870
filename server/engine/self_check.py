"""What holds on this machine: does a row get the same bits in prefill, in plain decoding and in a tree?

Losslessness rests on it (design: "Bits"), and it rests on libraries and processors that promise nothing of the kind.
So the target itself is asked at start-up, on a cache of its own, in about a second.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from redraft.kernels.attention import MakeAttention
from redraft.kernels.rows import Rows, cells
from redraft.kernels.tree_attention import CHUNK
from redraft.server.engine.target.decoder import Target

STEPS = 6
"""Tokens decoded one by one and in a tree, across a chunk boundary."""


def report(differing: list[str]) -> str:
    """A line for the operator about what ``differences`` found."""
    if not differing:
        return "self-check: prefill, single steps, chains and trees agree bit for bit on this machine"
    return (
        f"self-check: WARNING, {', '.join(differing)} differ from prefill in some bits on this machine: "
        "output may depend on the draft where two tokens are nearly tied; try --dtype fp32"
    )


def differences(target: Target, make_attention: MakeAttention) -> list[str]:
    """Names of the ways to compute the same rows that gave other bits than one prefill pass did."""
    probe = _Probe(target, make_attention)
    found = []
    for name, run in (("single steps", probe.steps), ("a chain", probe.chain), ("a tree", probe.tree)):
        if not torch.equal(run(), probe.reference):
            found.append(name)
    return found


class _Probe:
    """Computes the last ``STEPS`` rows of one random sequence in several ways."""

    def __init__(self, target: Target, make_attention: MakeAttention) -> None:
        self.target, self.make_attention = target, make_attention
        spec, device = target.spec, target.device
        self.start = CHUNK - STEPS // 2
        self.length = self.start + STEPS
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(spec.vocab, (self.length,), generator=generator).to(device)
        self.page_table = torch.tensor([[1, 2, 3], [0, 0, 0]], device=device)
        kv_dtype = torch.float32 if device.type == "cpu" else target.dtype
        self.kv = torch.zeros(spec.layers, 2, 4 * CHUNK, spec.kv_heads, spec.head_dim, dtype=kv_dtype, device=device)
        self.reference = self._run(0, _chain(self.length))[self.start :]

    def steps(self) -> torch.Tensor:
        return torch.cat([self._run(self.start + i, [0], padding=1) for i in range(STEPS)])

    def chain(self) -> torch.Tensor:
        return self._run(self.start, _chain(STEPS), padding=2)

    def tree(self) -> torch.Tensor:
        """The sequence as a side branch: a wrong sibling stands before every node but the root."""
        parents, wanted = [0], [0]
        for _ in range(1, STEPS):
            parents += [wanted[-1], wanted[-1]]
            wanted.append(len(parents) - 1)
        return self._run(self.start, parents, wrong=set(range(len(parents))) - set(wanted))[wanted]

    def _run(self, start: int, parents: list[int], wrong: Iterable[int] = (), padding: int = 0) -> torch.Tensor:
        """Hidden states, logits and KV of a tree of tokens behind ``start``, side by side [rows, ...] fp32."""
        paths = _paths(parents)
        depths = [len(path) - 1 for path in paths]
        device, count = self.target.device, len(depths)
        depth = torch.tensor(depths + [0] * padding, device=device)
        slot = torch.tensor([0] * count + [1] * padding, device=device)
        token = self.tokens[(start + depth).clamp_max(self.length - 1)].clone()
        for node in wrong:
            token[node] = (token[node] + 1) % self.target.spec.vocab
        number = torch.arange(count + padding, device=device)
        index = torch.where(slot == 0, number, 0)
        rows = Rows(
            token=token,
            slot=slot,
            position=torch.where(slot == 0, start + depth, 0),
            depth=depth,
            parent=torch.tensor(parents + list(range(count, count + padding)), device=device),
            index=index,
            path=_table(paths, padding).to(device),
            first_row=torch.tensor([0, count], device=device),
            row_count=torch.tensor([count, 0], device=device),
        )
        cell = cells(self.page_table, slot, rows.position - depth + index, CHUNK)
        attend = self.make_attention(rows, self.page_table, start + count, self.target.spec.head_dim)
        target = self.target
        hidden = target.forward(token, rows.position, cell, self.kv, attend)
        written = self.kv[:, :, cell[:count]].movedim(2, 0).reshape(count, -1)
        logits = target.logits(hidden).float()
        return torch.cat((hidden[:count].float(), logits[:count], written.float()), 1)


def _chain(count: int) -> list[int]:
    """Parents of a chain of ``count`` nodes."""
    return [max(i - 1, 0) for i in range(count)]


def _paths(parents: list[int]) -> list[list[int]]:
    """Each node's ancestors from the root, itself last."""
    paths: list[list[int]] = [[0]]
    for node, parent in enumerate(parents[1:], start=1):
        paths.append([*paths[parent], node])
    return paths


def _table(paths: list[list[int]], padding: int) -> torch.Tensor:
    """[rows, W] of ``paths`` and of padding rows, -1 beyond their ends."""
    width = max(len(path) for path in paths)
    return torch.tensor([path + [-1] * (width - len(path)) for path in [*paths, *[[0]] * padding]])
