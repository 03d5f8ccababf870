"""GGUF files of our own making become the checkpoint they were made from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from redraft.server.engine.target import convert
from redraft.server.engine.target.convert import write_model
from redraft.server.engine.target.gguf_file import GgufModel
from redraft.server.engine.types import RedraftError

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCAB = 32, 4, 2, 8, 64, 260
Array = np.ndarray[Any, np.dtype[np.float32]]


def permuted(rows: Array, heads: int) -> Array:
    """llama.cpp's order of a Llama model's query and key rows: the two halves of each head interleaved."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


@pytest.fixture
def weights() -> dict[str, Array]:
    """One layer, by transformers' names; values that bf16 holds exactly."""
    generator = np.random.default_rng(0)
    layer = "model.layers.0."
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        f"{layer}input_layernorm.weight": (HIDDEN,),
        f"{layer}post_attention_layernorm.weight": (HIDDEN,),
        f"{layer}self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
        f"{layer}self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
        f"{layer}self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
        f"{layer}self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
        f"{layer}mlp.gate_proj.weight": (INNER, HIDDEN),
        f"{layer}mlp.up_proj.weight": (INNER, HIDDEN),
        f"{layer}mlp.down_proj.weight": (HIDDEN, INNER),
    }
    return {name: generator.integers(-128, 128, shape).astype(np.float32) / 64 for name, shape in shapes.items()}


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.0.input_layernorm": "blk.0.attn_norm",
    "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
    "model.layers.0.self_attn.q_proj": "blk.0.attn_q",
    "model.layers.0.self_attn.k_proj": "blk.0.attn_k",
    "model.layers.0.self_attn.v_proj": "blk.0.attn_v",
    "model.layers.0.self_attn.o_proj": "blk.0.attn_output",
    "model.layers.0.self_attn.q_norm": "blk.0.attn_q_norm",
    "model.layers.0.self_attn.k_norm": "blk.0.attn_k_norm",
    "model.layers.0.mlp.gate_proj": "blk.0.ffn_gate",
    "model.layers.0.mlp.up_proj": "blk.0.ffn_up",
    "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
}


def write_gguf(
    path: Path, weights: dict[str, Array], architecture: str, extra: Callable[[gguf.GGUFWriter], None] | None = None
) -> Path:
    """A GGUF as llama.cpp would make it, with a tokenizer of 256 bytes, one merge and three special tokens."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(5e5)
    writer.add_layer_norm_rms_eps(1e-6)
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in plain}
    letters |= {byte: chr(256 + n) for n, byte in enumerate(b for b in range(256) if b not in letters)}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|pad|>", "<|eos|>", "<|eot|>", *(letters[byte] for byte in range(256)), "ab"])
    writer.add_token_types([3, 3, 3, *[1] * 257])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(1)
    writer.add_uint32("tokenizer.ggml.eot_token_id", 2)
    writer.add_pad_token_id(0)
    if extra is not None:
        extra(writer)
    for name, values in weights.items():
        stem, _, kind = name.rpartition(".")
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(stem.rpartition(".")[2], 0)
        stored = permuted(values, heads) if architecture == "llama" and heads else values
        writer.add_tensor(f"{GGUF_NAMES.get(stem, stem)}.{kind}", stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(folder: Path) -> dict[str, torch.Tensor]:
    """All shards together."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same(loaded: dict[str, torch.Tensor], weights: dict[str, Array]) -> None:
    assert loaded.keys() == weights.keys()
    for name, values in weights.items():
        assert loaded[name].dtype == torch.bfloat16
        assert torch.equal(loaded[name], torch.from_numpy(values).to(torch.bfloat16)), name


def test_a_llama_file_becomes_a_whole_checkpoint(weights: dict[str, Array], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_model(write_gguf(tmp_path / "tiny.gguf", weights, "llama"), out)
    assert_same(load(out), weights)
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rope_parameters"] == {"rope_theta": 5e5, "rope_type": "default"}
    assert (config["rms_norm_eps"], config["head_dim"], config["tie_word_embeddings"]) == (1e-6, HEAD_DIM, True)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [1, 2]
    from redraft.server.text import TextTokenizer

    tokenizer = TextTokenizer.from_folder(out)
    assert tokenizer.encode("abé<|eot|>") == (VOCAB - 1, 3 + 0xC3, 3 + 0xA9, 2)


def test_a_large_model_is_written_in_shards(
    weights: dict[str, Array], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "SHARD_BYTES", 10_000)
    tensors = GgufModel(write_gguf(tmp_path / "tiny.gguf", weights, "llama")).tensors
    convert._write_weights(tensors, tmp_path, lambda units: None)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert all(name in load_file(tmp_path / file) for name, file in index["weight_map"].items())
    assert_same(load(tmp_path), weights)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_qwen_rows_stay_as_they_are(weights: dict[str, Array], tmp_path: Path, architecture: str) -> None:
    attention = "model.layers.0.self_attn."
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    if architecture == "qwen2":
        weights[f"{attention}q_proj.bias"] = np.arange(HEADS * HEAD_DIM, dtype=np.float32)
    else:
        weights[f"{attention}q_norm.weight"] = np.arange(HEAD_DIM, dtype=np.float32)
    model = GgufModel(write_gguf(tmp_path / "tiny.gguf", weights, architecture))
    assert_same({tensor.name: tensor.load() for tensor in model.tensors}, weights)
    assert model.config()["tie_word_embeddings"] is False


def test_quantised_blocks_are_de_quantised_in_fp32(weights: dict[str, Array], tmp_path: Path) -> None:
    values = weights["model.layers.0.mlp.up_proj.weight"]
    packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)

    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("blk.0.ffn_up.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    del weights["model.layers.0.mlp.up_proj.weight"]
    model = GgufModel(write_gguf(tmp_path / "tiny.gguf", weights, "llama", extra))
    found = {tensor.name: tensor for tensor in model.tensors}["model.layers.0.mlp.up_proj.weight"].load()
    expected = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    assert torch.equal(found, torch.from_numpy(expected).to(torch.bfloat16))
    assert not torch.equal(found.float(), torch.from_numpy(values))


def scaled_rope(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)


def rope_factors(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("rope_freqs.weight", np.ones(4, dtype=np.float32))


@pytest.mark.parametrize(
    ("architecture", "extra", "reason"),
    [
        ("mamba", None, "architecture mamba; supported are llama"),
        ("llama", scaled_rope, "scales its rope"),
        ("llama", rope_factors, "rope_freqs"),
    ],
)
def test_what_would_come_out_wrong_is_refused(
    weights: dict[str, Array],
    tmp_path: Path,
    architecture: str,
    extra: Callable[[gguf.GGUFWriter], None] | None,
    reason: str,
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", weights, architecture, extra)
    with pytest.raises(RedraftError, match=reason):
        write_model(path, tmp_path)


def test_the_converting_process_hands_its_reason_over(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(RedraftError, match=r"broken\.gguf is not a readable GGUF file"):
        convert.convert_gguf(tmp_path / "broken.gguf", tmp_path)
