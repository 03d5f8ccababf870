"""A DFlash draft's weights as serving wants them: merged products, packed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.drafts.checkpoint import Checkpoint
from redraft.drafts.dflash_config import DFlashConfig
from redraft.kernels.linear import Linear


@dataclass(frozen=True, slots=True)
class DraftLayer:
    """One layer; norms are fp32."""

    input_norm: Tensor
    qkv: Linear
    qk_norm: Tensor
    """[HQ + HKV, HD] scale of queries and keys."""
    output: Linear
    post_norm: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class DraftWeights:
    """All of a draft's, on its device; the embedding and the head are the target's."""

    fuse: Linear
    """The taps, side by side, to the context."""
    hidden_norm: Tensor
    context_kv: Linear
    """[D * 2 * HKV * HD, H]: the context's keys and values of all layers in one product."""
    k_norm: Tensor
    """[D, HKV, HD] the scale of its keys."""
    layers: tuple[DraftLayer, ...]
    norm: Tensor
    head: Linear
    vocabulary: Tensor | None
    """[V'] target id of every row of the head; None for all of them."""


def pack(checkpoint: Checkpoint, head: Tensor, device: torch.device, dtype: torch.dtype) -> DraftWeights:
    """Lay out ``checkpoint``; ``head`` [V, H] is the target's."""
    config, tensors = checkpoint.config_as(DFlashConfig), checkpoint.tensors

    def read(name: str) -> Tensor:
        return tensors[name].to(device, dtype)

    def merged(prefix: str, *names: str) -> Linear:
        return Linear(torch.cat([read(f"{prefix}{name}_proj.weight") for name in names]))

    def layer(number: int) -> DraftLayer:
        prefix = f"layers.{number}."
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        q, k = (read(f"{attention}{name}_norm.weight").float() for name in "qk")
        return DraftLayer(
            input_norm=read(prefix + "input_layernorm.weight").float(),
            qkv=merged(attention, "q", "k", "v"),
            qk_norm=torch.cat((q.expand(config.heads, -1), k.expand(config.kv_heads, -1))).contiguous(),
            output=merged(attention, "o"),
            post_norm=read(prefix + "post_attention_layernorm.weight").float(),
            gate_up=merged(mlp, "gate", "up"),
            down=merged(mlp, "down"),
        )

    stacked = [read(f"layers.{i}.self_attn.{name}_proj.weight") for i in range(config.layers) for name in "kv"]
    vocabulary = checkpoint.vocabulary
    if vocabulary is not None:
        vocabulary = vocabulary.to(head.device)
        head = head[vocabulary]
    layers = tuple(layer(i) for i in range(config.layers))
    return DraftWeights(
        fuse=Linear(read("fc.weight")),
        hidden_norm=read("hidden_norm.weight").float(),
        context_kv=Linear(torch.cat(stacked)),
        k_norm=torch.stack([one.qk_norm[config.heads :] for one in layers]),
        layers=layers,
        norm=read("norm.weight").float(),
        head=Linear(head.to(device, dtype)),
        vocabulary=None if vocabulary is None else vocabulary.to(device),
    )
