"""An EAGLE-3 draft's weights as serving wants them: merged products, packed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.drafts.checkpoint import Checkpoint
from redraft.kernels.linear import Linear


@dataclass(frozen=True, slots=True)
class Eagle3Weights:
    """All of a draft's, on its device; norms are fp32.  The embedding is the target's."""

    fuse: Linear
    """The taps, side by side, to a feature."""
    input_norm: Tensor
    """Of a token's embedding."""
    hidden_norm: Tensor
    """Of the feature beside it."""
    qkv: Linear
    """[(HQ + 2 HKV) HD, 2 H]"""
    kv: Linear
    """[2 HKV HD, 2 H]: the same once more, for context, which asks no queries."""
    output: Linear
    post_norm: Tensor
    gate_up: Linear
    down: Linear
    norm: Tensor
    head: Linear
    vocabulary: Tensor
    """[V'] target id of every row of the head."""


def pack(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Eagle3Weights:
    """Lay out ``checkpoint``."""
    tensors, vocabulary = checkpoint.tensors, checkpoint.vocabulary
    assert vocabulary is not None, "an EAGLE-3 checkpoint has d2t"

    def merged(prefix: str, *names: str) -> Linear:
        return Linear(torch.cat([tensors[f"midlayer.{prefix}.{name}_proj.weight"] for name in names]).to(device, dtype))

    def norm(name: str) -> Tensor:
        return tensors[f"{name}.weight"].to(device, dtype).float()

    return Eagle3Weights(
        fuse=Linear(tensors["fc.weight"].to(device, dtype)),
        input_norm=norm("midlayer.input_layernorm"),
        hidden_norm=norm("midlayer.hidden_norm"),
        qkv=merged("self_attn", "q", "k", "v"),
        kv=merged("self_attn", "k", "v"),
        output=merged("self_attn", "o"),
        post_norm=norm("midlayer.post_attention_layernorm"),
        gate_up=merged("mlp", "gate", "up"),
        down=merged("mlp", "down"),
        norm=norm("norm"),
        head=Linear(tensors["lm_head.weight"].to(device, dtype)),
        vocabulary=vocabulary.to(device),
    )
