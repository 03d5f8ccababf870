"""What the decoder needs to know of a target, read from its Hugging Face config."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redraft.server.engine.types import RedraftError

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
REQUIRED = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """Sizes and switches of one target of the Llama / Qwen2 / Qwen3 skeleton."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    norm_eps: float
    rope_theta: float
    rope_scaling: tuple[tuple[str, float], ...]
    """Parameters of Llama 3's frequency scaling, empty for none."""
    context: int
    tied: bool
    qk_norm: bool
    eos_token_ids: tuple[int, ...]

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def parameters(self) -> int:
        """Number of weights, embedding included once if tied."""
        attention = self.hidden * (2 * self.query_width + 2 * self.kv_width)
        layer = attention + 3 * self.hidden * self.intermediate
        return self.layers * layer + self.vocab * self.hidden * (1 if self.tied else 2)

    def kv_bytes(self, itemsize: int) -> int:
        """Bytes of KV for one token, all layers."""
        return 2 * self.layers * self.kv_width * itemsize


def read_spec(folder: Path) -> TargetSpec:
    """Read ``config.json`` and ``generation_config.json`` in ``folder``; ``RedraftError`` says what is unsupported."""
    raw: dict[str, Any] = json.loads((folder / "config.json").read_text())
    names = raw.get("architectures") or []
    if not any(name in ARCHITECTURES for name in names):
        raise RedraftError(f"{folder}: architecture {names} is not supported; supported are {', '.join(ARCHITECTURES)}")
    missing = [name for name in REQUIRED if not isinstance(raw.get(name), int)]
    if missing:
        raise RedraftError(f"{folder}/config.json lacks {', '.join(missing)}")
    if any(kind != "full_attention" for kind in raw.get("layer_types") or []) or raw.get("use_sliding_window"):
        raise RedraftError(f"{folder}: sliding-window attention is not supported")
    if raw.get("hidden_act", "silu") != "silu":
        raise RedraftError(f"{folder}: activation {raw['hidden_act']!r} is not supported, only silu")
    heads = raw["num_attention_heads"]
    theta, scaling = _rope(raw, folder)
    return TargetSpec(
        layers=raw["num_hidden_layers"],
        hidden=raw["hidden_size"],
        intermediate=raw["intermediate_size"],
        heads=heads,
        kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        vocab=raw["vocab_size"],
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        context=raw.get("max_position_embeddings", 2048),
        tied=raw.get("tie_word_embeddings", "Qwen3ForCausalLM" in names),
        qk_norm="Qwen3ForCausalLM" in names,
        eos_token_ids=_eos(raw, folder),
    )


def _rope(raw: dict[str, Any], folder: Path) -> tuple[float, tuple[tuple[str, float], ...]]:
    """Base and scaling, from either place that configs have used for them."""
    parameters = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    theta = float(parameters.pop("rope_theta", None) or raw.get("rope_theta") or 10000.0)
    kind = parameters.pop("rope_type", None) or parameters.pop("type", None) or "default"
    parameters.pop("type", None)
    if kind == "default":
        return theta, ()
    if kind == "llama3":
        return theta, tuple(sorted((k, float(v)) for k, v in parameters.items() if isinstance(v, int | float)))
    raise RedraftError(f"{folder}: rope scaling {kind!r} is not supported, only none and llama3")


def _eos(raw: dict[str, Any], folder: Path) -> tuple[int, ...]:
    """End-of-sequence ids; the generation config's win, as transformers has it."""
    generation = folder / "generation_config.json"
    found = json.loads(generation.read_text()).get("eos_token_id") if generation.is_file() else None
    found = raw.get("eos_token_id") if found is None else found
    if found is None:
        raise RedraftError(f"{folder}: neither config.json nor generation_config.json names eos_token_id")
    return tuple(found) if isinstance(found, list) else (found,)


def inverse_frequencies(spec: TargetSpec) -> list[float]:
    """Rotary frequencies [HD / 2], with Llama 3's scaling of the low ones (Llama 3.1 model card)."""
    plain = [spec.rope_theta ** (-2 * i / spec.head_dim) for i in range(spec.head_dim // 2)]
    if not spec.rope_scaling:
        return plain
    s = dict(spec.rope_scaling)
    original, low, high = s["original_max_position_embeddings"], s["low_freq_factor"], s["high_freq_factor"]
    scaled = []
    for frequency in plain:
        turns = original * frequency / (2 * math.pi)
        blend = min(max((turns - low) / (high - low), 0.0), 1.0)
        scaled.append((1 - blend) * frequency / s["factor"] + blend * frequency)
    return scaled
