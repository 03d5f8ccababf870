"""Load a checkpoint's safetensors into the decoder's merged weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from redraft.kernels.linear import Linear
from redraft.server.engine.target.digest import weight_files
from redraft.server.engine.target.spec import TargetSpec
from redraft.server.engine.types import RedraftError

Read = Callable[[str], Tensor]


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer; Q, K, V and gate, up are merged to one product each."""

    input_norm: Tensor
    """[H], like all norms in fp32."""
    qkv: Linear
    qk_norm: Tensor | None
    """[HQ + HKV, HD] fp32 scale of queries and keys (Qwen3), or None."""
    output: Linear
    post_norm: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Weights:
    """All weights of a target, on its device and in its dtype."""

    embedding: Tensor
    layers: tuple[Layer, ...]
    norm: Tensor
    head: Linear


class Checkpoint:
    """Tensors by name over the safetensors files of a folder; each is read when asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Path] = {}
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as opened:
                self.files.update(dict.fromkeys(opened.keys(), path))
        if not self.files:
            raise RedraftError(f"{folder}: no *.safetensors file (pickled weights are not loaded)")

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.files:
            raise RedraftError(f"{self.folder}: tensor {name} is missing from the checkpoint")
        with safe_open(self.files[name], framework="pt") as opened:
            return opened.get_tensor(name)  # type: ignore[no-any-return]


def load_weights(folder: Path, spec: TargetSpec, device: torch.device, dtype: torch.dtype) -> Weights:
    """Read, merge and lay out the weights of ``folder``."""
    checkpoint = Checkpoint(folder)

    def read(name: str) -> Tensor:
        return checkpoint[name].to(device, dtype)

    embedding = read("model.embed_tokens.weight")
    if embedding.shape != (spec.vocab, spec.hidden):
        raise RedraftError(
            f"{folder}: embedding is {tuple(embedding.shape)}, config.json says {(spec.vocab, spec.hidden)}"
        )
    tied = spec.tied or "lm_head.weight" not in checkpoint
    return Weights(
        embedding=embedding,
        layers=tuple(_layer(read, checkpoint, spec, i) for i in range(spec.layers)),
        norm=read("model.norm.weight").float(),
        head=Linear(embedding if tied else read("lm_head.weight")),
    )


def head_tensor(folder: Path, spec: TargetSpec, weights: Weights) -> Tensor:
    """[V, H] the head as it is stored, for a draft that shares it; a tied one takes no memory of its own."""
    checkpoint = Checkpoint(folder)
    if spec.tied or "lm_head.weight" not in checkpoint:
        return weights.embedding
    return checkpoint["lm_head.weight"].to(weights.embedding.device, weights.embedding.dtype)


def _layer(read: Read, checkpoint: Checkpoint, spec: TargetSpec, number: int) -> Layer:
    prefix = f"model.layers.{number}."

    def merged(*names: str) -> Linear:
        keys = [f"{prefix}{name}_proj" for name in names]
        biases = [f"{key}.bias" for key in keys if f"{key}.bias" in checkpoint]
        if biases and len(biases) != len(keys):
            raise RedraftError(f"{checkpoint.folder}: only some of {keys} have a bias")
        weight = torch.cat([read(f"{key}.weight") for key in keys])
        return Linear(weight, torch.cat([read(bias) for bias in biases]) if biases else None)

    qk_norm = None
    if spec.qk_norm:
        q, k = (read(f"{prefix}self_attn.{name}_norm.weight").float() for name in "qk")
        qk_norm = torch.cat((q.expand(spec.heads, -1), k.expand(spec.kv_heads, -1))).contiguous()
    return Layer(
        input_norm=read(f"{prefix}input_layernorm.weight").float(),
        qkv=merged("self_attn.q", "self_attn.k", "self_attn.v"),
        qk_norm=qk_norm,
        output=merged("self_attn.o"),
        post_norm=read(f"{prefix}post_attention_layernorm.weight").float(),
        gate_up=merged("mlp.gate", "mlp.up"),
        down=merged("mlp.down"),
    )
