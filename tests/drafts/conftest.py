"""An EAGLE-3 draft being served, and what it should say by the formulas, worked out anew.

``Plain`` knows no cache: it recomputes everything for every node in Python loops, the pairs of the text from the taps,
those of a drafted path from the layer's own outputs, and the tree by EAGLE-2's procedure over lists.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from redraft.drafts.base import Bounds, DraftState, Passed
from redraft.drafts.checkpoint import read_draft, write_draft
from redraft.drafts.eagle3 import Eagle3Drafter
from redraft.drafts.eagle3_config import Eagle3Config
from redraft.kernels.noise import gumbel
from redraft.kernels.rows import cells
from redraft.kernels.sample import SamplingTable

VOCAB, HIDDEN, PAGE, POSITIONS = 97, 40, 128, 300
PAGES = [[5, 8, 0], [0, 0, 0], [7, 2, 0], [9, 3, 6], [0, 0, 0], [4, 0, 0], [0, 0, 0]]


class Plain:
    """One text's draft from the formulas (drafters-and-kernels.md 2.1, 2.3)."""

    def __init__(self, config: Eagle3Config, tensors: dict[str, Tensor], embedding: Tensor, taps: Tensor) -> None:
        """``taps`` [positions, n, H] of the text."""
        self.config, self.tensors, self.embedding = config, tensors, embedding
        self.features = [tensors["fc.weight"] @ tap.flatten() for tap in taps]

    def weight(self, name: str) -> Tensor:
        return self.tensors[f"midlayer.{name}.weight"]

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean() + self.config.norm_eps).sqrt() * weight

    def turned(self, x: Tensor, position: int) -> Tensor:
        """[heads, HD] rotated: a dimension and the one half a head further make a complex number."""
        half = self.config.head_dim // 2
        turns = torch.exp(1j * position * self.config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half))
        z = torch.complex(x[:, :half].double(), x[:, half:].double()) * turns
        return torch.cat((z.real, z.imag), 1).float()

    def pair(self, feature: Tensor, token: int) -> Tensor:
        embedded = self.norm(self.embedding[token], self.weight("input_layernorm"))
        return torch.cat((embedded, self.norm(feature, self.weight("hidden_norm"))))

    def heads(self, name: str, pair: Tensor) -> Tensor:
        return (self.weight(f"self_attn.{name}_proj") @ pair).view(-1, self.config.head_dim)

    def after(self, text: list[int], drafted: list[int]) -> Tensor:
        """The layer's output behind ``text`` and ``drafted``: pair number i is (feature of i, token i + 1)."""
        feature, output = self.features[: len(text) - 1], Tensor()
        keys, values = list[Tensor](), list[Tensor]()
        tokens = [*text, *drafted]
        for i in range(len(tokens) - 1):
            if i >= len(text) - 1:
                feature = [*feature, output]
            pair = self.pair(feature[i], tokens[i + 1])
            keys.append(self.turned(self.heads("k", pair), i))
            values.append(self.heads("v", pair))
            if i < len(text) - 2:
                continue
            query = self.turned(self.heads("q", pair), i)
            seen = []
            for head in range(self.config.heads):
                shared = head // (self.config.heads // self.config.kv_heads)
                score = torch.stack([query[head] @ key[shared] for key in keys]) / math.sqrt(self.config.head_dim)
                seen.append(score.softmax(0) @ torch.stack([value[shared] for value in values]))
            x = feature[i] + self.weight("self_attn.o_proj") @ torch.cat(seen)
            y = self.norm(x, self.weight("post_attention_layernorm"))
            inner = functional.silu(self.weight("mlp.gate_proj") @ y) * (self.weight("mlp.up_proj") @ y)
            output = x + self.weight("mlp.down_proj") @ inner
        return output

    def belief(self, text: list[int], drafted: list[int], seed: int, temperature: float) -> dict[int, float]:
        """Log-probability of what comes next, by the target's ids, leaning towards the noise of ``seed``."""
        scale = (self.config.tree_temperatures or (1.0,) * 99)[len(drafted)]
        logits = self.tensors["lm_head.weight"] @ self.norm(self.after(text, drafted), self.tensors["norm.weight"])
        logits = logits / scale
        ids = torch.arange(len(logits)) + self.tensors["d2t"]
        if temperature > 0:
            z, best = logits.topk(min(32, len(logits)))
            ids, produced = ids[best], torch.tensor([len(text) + len(drafted)])
            logits = z + temperature / scale * gumbel(torch.tensor([seed]), produced, ids[None])[0]
        return dict(zip(ids.tolist(), logits.log_softmax(0).tolist(), strict=True))

    def tree(
        self, text: list[int], steps: int, width: int, nodes: int, seed: int = 0, temperature: float = 0.0
    ) -> list[tuple[list[int], float]]:
        """Paths of the ``nodes`` best nodes and their log-probabilities, best first."""
        live: list[tuple[list[int], float]] = [([], 0.0)]
        pool = list[tuple[list[int], float]]()
        for _ in range(steps):
            children = []
            for path, total in live:
                belief = self.belief(text, path, seed, temperature)
                likeliest = sorted(belief.items(), key=lambda item: -item[1])[:width]
                children += [([*path, token], total + log) for token, log in likeliest]
            pool += children
            live = sorted(children, key=lambda node: -node[1])[:width]
        return sorted(pool, key=lambda node: -node[1])[:nodes]


class Eagle3Bench:
    """A random EAGLE-3 draft being served, with random texts and taps."""

    LENGTHS: ClassVar = {0: 1, 2: 127, 3: 254, 5: 2}
    """Tokens of the active slots: no context, trees that cross pages, one pair.  1 and 4 are free, 6 is trash."""
    DRAFTING: ClassVar = [2, 3, 5]
    """Slots with a feature to draft from."""
    KEPT = tuple(range(1, VOCAB, 2))

    def __init__(self, folder: Path, *, branch: int | None = None, nodes: int = 9, **changes: Any) -> None:
        sizes: dict[str, Any] = {
            "hidden": HIDDEN,
            "intermediate": 48,
            "heads": 4,
            "kv_heads": 1,
            "head_dim": 16,
            "vocab": VOCAB,
            "norm_eps": 1e-5,
            "rope_theta": 1e4,
            "taps": (2, 0, 1),
            "target_layers": 4,
            "draft_vocab": len(self.KEPT),
            "steps": 4,
        }
        self.config = config = Eagle3Config(**(sizes | changes))
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        weights = {}
        for name, shape in config.shapes.items():
            # norms of ones would hide that they were swapped
            weights[name] = random(*shape) * shape[1] ** -0.5 if len(shape) == 2 else random(*shape) * 0.3 + 1
        weights["lm_head.weight"] *= 3
        self.embedding = random(VOCAB, HIDDEN)
        kept = self.KEPT if config.draft_vocab == len(self.KEPT) else None
        write_draft(folder, config, weights, kept, {}, torch.float32)
        self.checkpoint = read_draft(folder)
        self.drafter = Eagle3Drafter(self.checkpoint, self.embedding, POSITIONS, nodes, "bench", branch)
        slots = len(PAGES)
        self.taps = random(slots, POSITIONS, len(config.taps), HIDDEN)
        length = torch.zeros(slots, dtype=torch.int64)
        for slot, count in self.LENGTHS.items():
            length[slot] = count
        context = self.drafter.context
        shape = (context.layers, 2, 10 * PAGE, context.kv_heads, context.head_dim)
        self.state = DraftState(
            tokens=torch.randint(VOCAB, (slots, POSITIONS), generator=generator),
            length=length,
            active=length > 0,
            page_table=torch.tensor(PAGES),
            kv=torch.full(shape, torch.nan),  # whatever no row may read would show
            sampling=SamplingTable.greedy(slots - 1, "cpu"),
        )
        self.bounds = Bounds(context=max(self.LENGTHS.values()), requests=len(self.LENGTHS), sampled=False)

    def cell(self, slot: Tensor, logical: Tensor) -> Tensor:
        return cells(self.state.page_table, slot, logical, PAGE)

    def absorb(self, slot: int, positions: list[int], padding: int = 0) -> None:
        """Let the drafter take in rows of ``slot``'s text, with ``padding`` rows for the trash slot behind them."""
        position = torch.tensor(positions + [0] * padding)
        row = torch.tensor([slot] * len(positions) + [len(PAGES) - 1] * padding)
        before = self.cell(row, (position - 1).clamp_min(0))
        token, cell = self.state.tokens[row, position], self.cell(row, position)
        self.drafter.absorb(Passed(self.taps[row, position], token, position, cell, before), self.state.kv)

    def fill(self) -> None:
        """All context before the anchors, in one pass a slot."""
        for slot, length in self.LENGTHS.items():
            if length > 1:
                self.absorb(slot, list(range(length - 1)))

    def text(self, slot: int) -> list[int]:
        return self.state.tokens[slot, : self.LENGTHS[slot]].tolist()

    def plain(self, slot: int) -> Plain:
        return Plain(self.config, self.checkpoint.tensors, self.embedding, self.taps[slot])


@pytest.fixture
def make_eagle3(tmp_path: Path) -> Callable[..., Eagle3Bench]:
    return lambda **options: Eagle3Bench(tmp_path / "draft", **options)
