"""What a GGUF file says of its model: tensor names, shapes and configuration in the words of transformers.

llama.cpp stores the query and key rows of Llama models in interleaved rope order; transformers (and the target decoder)
rotate halves, so those rows are put back.  Qwen models are stored as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.server.engine.types import RedraftError

if TYPE_CHECKING:
    import numpy as np
    import torch

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor, still quantised: ``raw`` is the reader's tensor, ``shape`` is torch's (rows first)."""

    name: str
    shape: tuple[int, ...]
    heads: int
    """Heads whose rows have to be put back into half-rotated order; 0: none."""
    raw: Any

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    def load(self) -> torch.Tensor:
        """De-quantised as bf16, ``shape``; computed in fp32 and rounded once."""
        import gguf.quants
        import torch

        try:
            values = gguf.quants.dequantize(self.raw.data, self.raw.tensor_type)
        except NotImplementedError as error:
            kind = self.raw.tensor_type.name
            raise RedraftError(
                f"GGUF type {kind} cannot be de-quantised; use a file of another quantisation"
            ) from error
        values = values.reshape(self.shape)
        return torch.from_numpy(_halves(values, self.heads).copy()).to(torch.bfloat16)


def _halves(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of each head from (pair, element) order to (element, pair) order, the inverse of llama.cpp's permutation."""
    if not heads:
        return values
    pairs = values.shape[0] // heads // 2
    return values.reshape(heads, pairs, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


class GgufModel:
    """A GGUF file opened for conversion."""

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError as error:
            raise RedraftError("reading a GGUF file needs the package gguf; pip install gguf") from error
        try:
            self._reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, OSError) as error:
            raise RedraftError(f"{path} is not a readable GGUF file ({error}); fetch it again") from error
        self.path = path
        self.architecture = str(self.value("general.architecture"))
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise RedraftError(f"{path.name} holds a model of architecture {self.architecture}; supported are {known}")
        if self.get("rope.scaling.type", "none") != "none":
            raise RedraftError(f"{path.name} scales its rope, which GGUF does not carry completely; use safetensors")

    def value(self, key: str, default: Any = None) -> Any:
        """The metadata value under the full ``key``."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def get(self, key: str, default: Any = None) -> Any:
        """The metadata value under ``<architecture>.key``."""
        return self.value(f"{self.architecture}.{key}", default)

    def _need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise RedraftError(
                f"{self.path.name} lacks {self.architecture}.{key}; fetch another conversion of the model"
            )
        return value

    @property
    def tensors(self) -> list[GgufTensor]:
        """All tensors under transformers' names, in the file's order."""
        heads = int(self._need("attention.head_count"))
        permuted = {"attn_q": heads, "attn_k": int(self.get("attention.head_count_kv", heads))}
        if self.architecture != "llama":
            permuted = {}
        return [self._tensor(raw, permuted) for raw in self._reader.tensors]

    def _tensor(self, raw: Any, permuted: dict[str, int]) -> GgufTensor:
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", raw.name)
        layer, name, kind = match.groups() if match else (None, raw.name, "")
        stem = (LAYER if layer else WHOLE).get(name)
        if stem is None:
            raise RedraftError(
                f"{self.path.name} has a tensor that no supported model has: {raw.name}; use safetensors"
            )
        prefix = f"model.layers.{layer}." if layer else ""
        shape = tuple(int(size) for size in reversed(raw.shape))
        return GgufTensor(f"{prefix}{stem}.{kind}", shape, permuted.get(name, 0), raw)

    @property
    def eos_token_ids(self) -> list[int]:
        """End of text and, where the file names another, end of turn."""
        found = [self.value(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
        return sorted({int(token) for token in found if token is not None})

    def config(self) -> dict[str, Any]:
        """Keyword arguments of the transformers configuration."""
        names = {raw.name: raw for raw in self._reader.tensors}
        if "token_embd.weight" not in names:
            raise RedraftError(f"{self.path.name} holds no token embedding; it is not a whole model")
        heads, hidden = int(self._need("attention.head_count")), int(self._need("embedding_length"))
        values = {
            "architectures": [ARCHITECTURES[self.architecture]],
            "vocab_size": int(names["token_embd.weight"].shape[1]),
            "hidden_size": hidden,
            "intermediate_size": int(self._need("feed_forward_length")),
            "num_hidden_layers": int(self._need("block_count")),
            "num_attention_heads": heads,
            "num_key_value_heads": int(self.get("attention.head_count_kv", heads)),
            "head_dim": int(self.get("attention.key_length", hidden // heads)),
            "max_position_embeddings": int(self._need("context_length")),
            "rms_norm_eps": _shortest(self._need("attention.layer_norm_rms_epsilon")),
            "rope_parameters": {"rope_type": "default", "rope_theta": _shortest(self.get("rope.freq_base", 1e4))},
            "tie_word_embeddings": "output.weight" not in names,
            "bos_token_id": self.value("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.eos_token_ids[0] if len(self.eos_token_ids) == 1 else self.eos_token_ids,
            "pad_token_id": self.value("tokenizer.ggml.padding_token_id"),
            "dtype": "bfloat16",
        }
        if self.architecture == "llama":
            values["attention_bias"] = "blk.0.attn_q.bias" in names
        return values


def _shortest(value: float) -> float:
    """The shortest decimal that rounds to the same fp32 number: 1e-05 instead of 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))
