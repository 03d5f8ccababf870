"""EAGLE-3 as a trainable module (arXiv 2503.01840): one decoder layer, unrolled along chains from many starts at once.

Parameters carry the published checkpoint's names; the embedding is the target's, frozen, and not part of the module.

Pair j of a text reads the feature of token j beside the embedding of token j + 1 and predicts token j + 2.  A chain
starts at a pair: its pass 0 reads that pair, pass i the layer's own output of pass i - 1 beside the embedding of the
token i further on.  Its rows see all pairs up to the start, and the rows of passes 1 .. i of their own chain.
Sizes: b texts, J pairs, A starts, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from redraft.drafts.eagle3_config import Eagle3Config
from redraft.drafts.training.module import MLP, RMSNorm, turn


class Chains:
    """What the passes of A chains a text share: what they see of the text, and their own rows so far."""

    def __init__(self, start: Tensor, keys: Tensor, values: Tensor, rope: tuple[Tensor, Tensor]) -> None:
        """``start`` [b, A] pairs; ``keys`` (rotated) and ``values`` [b, HKV, J, HD] of the text's pairs."""
        self.start, self.keys, self.values = start, keys, values
        self.cos, self.sin = (table[:, 0] for table in rope)
        seen = torch.arange(keys.shape[2], device=start.device) <= start.unsqueeze(-1)
        low = torch.finfo(self.cos.dtype).min / 2
        self.mask = torch.where(seen, 0.0, low)[:, None, :, None, :]
        """[b, 1, A, 1, J] added to scores."""
        self.own_keys: list[Tensor] = []
        self.own_values: list[Tensor] = []
        """[b, HKV, A, HD] of every pass after the first, whose rows are pairs of the text."""
        self.passed = 0

    def rope(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine [b, A, 1, HD] of the rows of the pass that is due."""
        place = self.start + self.passed
        return self.cos[place].unsqueeze(2), self.sin[place].unsqueeze(2)


class Attention(nn.Module):
    """Over a text's pairs and a chain's own rows, from rows that are an embedding and a feature side by side."""

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        self.kv_heads, self.dim = config.kv_heads, config.head_dim
        self.q_proj = nn.Linear(2 * config.hidden, config.query_width, bias=False)
        self.k_proj = nn.Linear(2 * config.hidden, config.kv_width, bias=False)
        self.v_proj = nn.Linear(2 * config.hidden, config.kv_width, bias=False)
        self.o_proj = nn.Linear(config.query_width, config.hidden, bias=False)

    def pairs(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Rotated keys, and values, [b, HKV, J, HD] of the text's pairs ``x`` [b, J, 2H]."""
        tables = rope[0][: x.shape[1]], rope[1][: x.shape[1]]
        k, v = (project(x).unflatten(-1, (self.kv_heads, self.dim)) for project in (self.k_proj, self.v_proj))
        return turn(k, tables).transpose(1, 2), v.transpose(1, 2)

    def forward(self, x: Tensor, chains: Chains) -> Tensor:
        """``x`` [b, A, 2H], the rows of the pass that is due -> [b, A, H]."""
        rope = chains.rope()
        q = turn(self.q_proj(x).unflatten(-1, (-1, self.dim)), rope) * self.dim**-0.5
        q = q.unflatten(2, (self.kv_heads, -1)).transpose(1, 2)  # [b, HKV, A, G, HD]
        score = torch.matmul(q.flatten(2, 3), chains.keys.transpose(-1, -2))
        score, pairs = score.view(*q.shape[:-1], -1) + chains.mask, score.shape[-1]
        if chains.passed:
            k, v = (project(x).unflatten(-1, (self.kv_heads, self.dim)) for project in (self.k_proj, self.v_proj))
            chains.own_keys.append(turn(k, rope).transpose(1, 2))
            chains.own_values.append(v.transpose(1, 2))
            own = torch.matmul(q, torch.stack(chains.own_keys, -1))
            score = torch.cat((score, own), -1)
        weight = score.softmax(-1)
        out = torch.matmul(weight[..., :pairs].flatten(2, 3), chains.values).view_as(q)
        if chains.passed:
            out = out + torch.matmul(weight[..., pairs:], torch.stack(chains.own_values, 3))
        mixed: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return mixed


class Layer(nn.Module):
    """The one decoder layer; the residual stream begins as the feature alone."""

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.hidden_norm = RMSNorm(config.hidden, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.norm_eps)

    def rows(self, feature: Tensor, embedded: Tensor) -> Tensor:
        """[..., H] each -> [..., 2H]: what queries, keys and values are made of."""
        return torch.cat((self.input_layernorm(embedded), self.hidden_norm(feature)), -1)

    def forward(self, feature: Tensor, embedded: Tensor, chains: Chains) -> Tensor:
        """[b, A, H] each -> [b, A, H]."""
        x = feature + self.self_attn(self.rows(feature, embedded), chains)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Eagle3Module(nn.Module):
    """The trainable part of a draft."""

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        self.config = config
        self.fc = nn.Linear(len(config.taps) * config.hidden, config.hidden, bias=False)
        self.midlayer = Layer(config)
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        self.lm_head = nn.Linear(config.hidden, config.draft_vocab, bias=False)

    def begin(
        self, taps: Tensor, embedded: Tensor, start: Tensor, rope: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Chains]:
        """The features [b, A, H] that chains from ``start`` begin with, and what the chains see.

        Args:
            taps: [b, J, n * H] outputs of the tapped layers at every pair's first token.
            embedded: [b, J, H] embedding of every pair's second token.
            start: [b, A] int64 pairs.
            rope: cosine and sine of ``kernels.rope.rope_table``, at least J + passes positions.
        """
        feature = self.fc(taps)
        keys, values = self.midlayer.self_attn.pairs(self.midlayer.rows(feature, embedded.to(feature.dtype)), rope)
        own = feature.gather(1, start.unsqueeze(-1).expand(-1, -1, feature.shape[-1]))
        return own, Chains(start, keys, values, rope)

    def step(self, feature: Tensor, embedded: Tensor, chains: Chains) -> Tensor:
        """One pass: features and embeddings [b, A, H] -> [b, A, H], normed for the head, and the next features."""
        made: Tensor = self.midlayer(feature, embedded.to(feature.dtype), chains)
        chains.passed += 1
        return made

    def forward(
        self, taps: Tensor, embedded: Tensor, start: Tensor, fed: Tensor, rope: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Unroll along given tokens.

        Args:
            taps: as ``begin`` has it, like ``embedded``, ``start`` and ``rope``.
            fed: [b, A, D, H] embedding of the token that every pass of every chain reads.

        Returns:
            [b, A, D, H] normed states, from which the head predicts; row i the token i + 2 behind the start's first.
        """
        feature, chains = self.begin(taps, embedded, start, rope)
        made = []
        for token in fed.unbind(2):
            feature = self.step(feature, token, chains)
            made.append(feature)
        normed: Tensor = self.norm(torch.stack(made, 2))
        return normed
