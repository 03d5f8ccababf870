"""A tiny random target in Hugging Face format, for tests and for trying the GPU suite without a real model.

Written without transformers, so that tests can compare the decoder with transformers' model loaded from the folder.
The vocabulary is whole: every id that the target can produce decodes to something.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

VOCAB = 512
HIDDEN = 64
INTERMEDIATE = 128
LAYERS = 2
HEAD_DIM = 16
KV_HEADS = 2
CONTEXT = 1024
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""The last ids of the vocabulary; the last one ends a turn."""

FAMILIES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
HEADS = {"llama": 4, "qwen2": 4, "qwen3": 8}
"""Qwen3's queries are wider than its hidden state, as in the real ones."""
TIED = {"llama": True, "qwen2": False, "qwen3": True}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_target(
    folder: Path, family: str = "llama", seed: int = 0, *, tokenizer: bool = False, layers: int = LAYERS
) -> Path:
    """Write a random target of ``family`` (``llama``, ``qwen2`` or ``qwen3``) into ``folder``; returns it.

    Same family and seed, same weights.  ``tokenizer`` adds a byte-level tokenizer and a ChatML template.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_config(family) | {"num_hidden_layers": layers}, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": VOCAB - 1}))
    save_file(_tensors(family, seed, layers), folder / "model.safetensors", metadata={"format": "pt"})
    if tokenizer:
        _write_tokenizer(folder)
    return folder


def _config(family: str) -> dict[str, Any]:
    name = FAMILIES[family]
    config = {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": family,
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS[family],
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": TIED[family],
        "bos_token_id": VOCAB - len(SPECIAL),
        "eos_token_id": VOCAB - 1,
        "dtype": "float32",
    }
    return config


def _tensors(family: str, seed: int, layers: int) -> dict[str, Tensor]:
    """All weights, fp32; scaled so that the layers, not the embedding, decide the next token."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    def matrix(rows: int, columns: int) -> Tensor:
        return normal(rows, columns, scale=columns**-0.5)

    def norm(size: int, mean: float = 1.0) -> Tensor:
        return mean + normal(size, scale=0.1)

    queries, keys = HEADS[family] * HEAD_DIM, KV_HEADS * HEAD_DIM
    tensors = {"model.embed_tokens.weight": normal(VOCAB, HIDDEN, scale=0.1), "model.norm.weight": norm(HIDDEN, 3.0)}
    if not TIED[family]:
        tensors["lm_head.weight"] = normal(VOCAB, HIDDEN, scale=0.1)
    for number in range(layers):
        prefix = f"model.layers.{number}."
        tensors[f"{prefix}input_layernorm.weight"] = norm(HIDDEN)
        tensors[f"{prefix}post_attention_layernorm.weight"] = norm(HIDDEN)
        for name, width in (("q", queries), ("k", keys), ("v", keys)):
            tensors[f"{prefix}self_attn.{name}_proj.weight"] = matrix(width, HIDDEN)
            if family == "qwen2":
                tensors[f"{prefix}self_attn.{name}_proj.bias"] = normal(width, scale=0.1)
        tensors[f"{prefix}self_attn.o_proj.weight"] = matrix(HIDDEN, queries)
        if family == "qwen3":
            tensors[f"{prefix}self_attn.q_norm.weight"] = norm(HEAD_DIM)
            tensors[f"{prefix}self_attn.k_norm.weight"] = norm(HEAD_DIM)
        tensors[f"{prefix}mlp.gate_proj.weight"] = matrix(INTERMEDIATE, HIDDEN)
        tensors[f"{prefix}mlp.up_proj.weight"] = matrix(INTERMEDIATE, HIDDEN)
        tensors[f"{prefix}mlp.down_proj.weight"] = matrix(HIDDEN, INTERMEDIATE)
    return tensors


def _write_tokenizer(folder: Path) -> None:
    """Bytes, merges of two letters, special tokens: ``VOCAB`` ids in all."""
    # not at the top: a machine that only runs the GPU suite has no tokenizers
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = ((a, b) for a in ascii_lowercase for b in ascii_lowercase)
    merges = list(islice(pairs, VOCAB - len(SPECIAL) - len(symbols)))
    vocabulary = {token: number for number, token in enumerate([*symbols, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[-1],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
