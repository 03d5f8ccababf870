"""DFlash as a trainable module (arXiv 2602.06036 §3): many blocks of a sequence in one packed pass.

Parameters carry the published checkpoint's names.  The embedding and the head are the target's, frozen, and not part of
the module.  Sizes: b sequences, S positions, A anchors, B rows a block, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from redraft.drafts.dflash_config import DFlashConfig
from redraft.drafts.eagle3_config import Eagle3Config
from redraft.drafts.training.selector_module import CandidateSelector
from redraft.kernels.rope import rope_table


class RMSNorm(nn.Module):
    """Root-mean-square norm with a trainable scale."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Queries of block rows over the context before their anchor and over their own block."""

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = config.heads, config.kv_heads, config.head_dim
        self.q_proj = nn.Linear(config.hidden, config.query_width, bias=False)
        self.k_proj = nn.Linear(config.hidden, config.kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden, config.kv_width, bias=False)
        self.o_proj = nn.Linear(config.query_width, config.hidden, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, context: Tensor, masks: Masks, rows: slice) -> Tensor:
        """``x`` [b, A, B, H] normed rows, of which ``rows`` ask; ``context`` [b, S, H] -> [b, A, rows, H]."""
        b, anchors, width, _ = x.shape
        q = self.q_norm(self.q_proj(x[:, :, rows]).unflatten(-1, (self.kv_heads, -1, self.dim)))
        q = turn(q, masks.block_rope(rows, 2)) * self.dim**-0.5
        asking, group = q.shape[2], q.shape[4]
        q = q.permute(0, 3, 1, 2, 4, 5).reshape(b, self.kv_heads, anchors, asking * group, self.dim)
        k = turn(self.k_norm(self.k_proj(x).unflatten(-1, (self.kv_heads, self.dim))), masks.block_rope(slice(None), 1))
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, self.dim))
        k, v = (t.permute(0, 3, 1, 2, 4) for t in (k, v))  # [b, HKV, A, B, HD]
        past_k = turn(self.k_norm(self.k_proj(context).unflatten(-1, (self.kv_heads, self.dim))), masks.context_rope)
        past_v = self.v_proj(context).unflatten(-1, (self.kv_heads, self.dim))
        past_k, past_v = (t.permute(0, 2, 1, 3) for t in (past_k, past_v))  # [b, HKV, S, HD]
        past = torch.matmul(q.flatten(2, 3), past_k.transpose(-1, -2)).view(
            b, self.kv_heads, anchors, asking * group, -1
        )
        own = torch.matmul(q, k.transpose(-1, -2))
        score = torch.cat((past + masks.context, own + masks.block(rows, group)), -1)
        weight = score.softmax(-1)
        past, own = weight[..., :-width], weight[..., -width:]
        out = torch.matmul(past.flatten(2, 3), past_v).view_as(q) + torch.matmul(own, v)
        out = out.view(b, self.kv_heads, anchors, asking, group, self.dim).permute(0, 2, 3, 1, 4, 5)
        mixed: Tensor = self.o_proj(out.reshape(b, anchors, asking, -1))
        return mixed


class Masks:
    """What a packed pass needs to know of its anchors: rotations and additive masks, shared by all layers."""

    def __init__(self, config: DFlashConfig, rope: tuple[Tensor, Tensor], anchor: Tensor, positions: int) -> None:
        """``anchor`` [b, A]; ``positions`` is S."""
        self.config = config
        device = anchor.device
        cos, sin = (table[:, 0] for table in rope)
        place = anchor.unsqueeze(-1) + torch.arange(config.block_size, device=device)  # [b, A, B]
        self.block_cos, self.block_sin = cos[place], sin[place]
        self.context_rope = cos[:positions].unsqueeze(1), sin[:positions].unsqueeze(1)
        seen = torch.arange(positions, device=device) < anchor.unsqueeze(-1)  # strictly before the anchor
        low = torch.finfo(cos.dtype).min / 2
        self.context = torch.where(seen, 0.0, low)[:, None, :, None, :]  # [b, 1, A, 1, S]
        row = torch.arange(config.block_size, device=device)
        ahead = (row > row.unsqueeze(1)) & config.causal
        self.within = torch.where(ahead, low, 0.0)

    def block_rope(self, rows: slice, axes: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the blocks' ``rows``, with ``axes`` axes for heads: [b, A, rows, 1 ..., HD]."""
        cos, sin = self.block_cos[:, :, rows], self.block_sin[:, :, rows]
        for _ in range(axes):
            cos, sin = cos.unsqueeze(3), sin.unsqueeze(3)
        return cos, sin

    def block(self, rows: slice, group: int) -> Tensor:
        """[rows * group, B] added to the scores of a block's own keys."""
        return self.within[rows].repeat_interleave(group, 0)


def turn(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the last axis (rope.rope_table: the sine carries the sign)."""
    cos, sin = (t.to(x.dtype) for t in rope)
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DFlashConfig | Eagle3Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.down_proj = nn.Linear(config.intermediate, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One decoder layer.  Its context keys and values do not depend on other layers (KV injection)."""

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.norm_eps)

    def forward(self, x: Tensor, context: Tensor, masks: Masks, rows: slice) -> Tensor:
        """[b, A, B, H] -> [b, A, rows, H]."""
        x = x[:, :, rows] + self.self_attn(self.input_layernorm(x), context, masks, rows)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class DFlashModule(nn.Module):
    """The trainable part of a draft."""

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        self.config = config
        self.layers: Sequence[Layer] = nn.ModuleList(Layer(config) for _ in range(config.layers))  # type: ignore[assignment]
        self.fc = nn.Linear(len(config.taps) * config.hidden, config.hidden, bias=False)
        self.hidden_norm = RMSNorm(config.hidden, config.norm_eps)
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        self.candidate_selector = CandidateSelector(config) if config.selector_rank else None

    def forward(self, taps: Tensor, anchor: Tensor, block: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Normed states from which the head predicts, of the masks of every block.

        Args:
            taps: [b, S, n * H] outputs of the tapped layers at every position.
            anchor: [b, A] int64 positions of the anchors.
            block: [b, A, B, H] embeddings of the anchors and of the masks.
            rope: cosine and sine of ``kernels.rope.rope_table``, at least S + B positions.

        Returns:
            [b, A, B - 1, H]; row k - 1 predicts the token at anchor + k.
        """
        masks = Masks(self.config, rope, anchor, taps.shape[1])
        context = self.hidden_norm(self.fc(taps))
        everything, predicting = slice(None), slice(1, None)
        for number, layer in enumerate(self.layers):
            # the anchor's own row predicts nothing: after the last layer nobody reads it
            block = layer(block, context, masks, predicting if number == len(self.layers) - 1 else everything)
        normed: Tensor = self.norm(block)
        return normed


def rope_for(config: DFlashConfig | Eagle3Config, positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rotation table of a draft."""
    half = torch.arange(config.head_dim // 2, dtype=torch.float64, device=device)
    return rope_table(config.rope_theta ** (-2 * half / config.head_dim), positions)
