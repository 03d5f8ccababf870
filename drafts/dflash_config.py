"""What a DFlash draft is: its sizes and switches, and the published checkpoint's ``config.json`` (arXiv 2602.06036).

Torch-free.  The format is z-lab's: ``block_size`` at the top level (older checkpoints) or inside ``dflash_config``
(newer ones); ``dflash_config.target_layer_ids`` counts layers from 0 and taps their *output*.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

ARCHITECTURE = "DFlashDraftModel"


class DraftError(Exception):
    """A draft, its checkpoint or its training data cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class DFlashConfig:
    """Sizes of a draft; hidden size, vocabulary, rotation and norms' epsilon are its target's."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    norm_eps: float
    rope_theta: float
    block_size: int
    """Rows of a block: the anchor and ``block_size`` - 1 masks, each of which predicts the token at its own place."""
    mask_token_id: int
    taps: tuple[int, ...]
    """Target layers, from 0, whose outputs are the draft's context."""
    target_layers: int
    causal: bool = False
    """Whether a block's row sees only the rows before it (JetSpec's ``causal_head``, arXiv 2606.18394)."""
    draft_vocab: int = 0
    """Tokens the draft can propose; 0: all of the target's."""
    max_positions: int = 8192
    tree_temperatures: tuple[float, ...] = ()
    """Per depth, what the logits are divided by before trees are scored; empty: 1 everywhere."""
    selector_rank: int = 0
    """Width of the tables by which candidates follow one another (selector.py); 0: every depth for itself."""

    @property
    def drafted(self) -> int:
        """Tokens proposed a block."""
        return self.block_size - 1

    @property
    def tokens(self) -> int:
        """That the draft can propose."""
        return self.draft_vocab or self.vocab

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the checkpoint by its published name."""
        hidden, found = self.hidden, dict[str, tuple[int, ...]]()
        for number in range(self.layers):
            prefix = f"layers.{number}."
            found[prefix + "self_attn.q_proj.weight"] = (self.query_width, hidden)
            found[prefix + "self_attn.k_proj.weight"] = (self.kv_width, hidden)
            found[prefix + "self_attn.v_proj.weight"] = (self.kv_width, hidden)
            found[prefix + "self_attn.o_proj.weight"] = (hidden, self.query_width)
            found[prefix + "self_attn.q_norm.weight"] = (self.head_dim,)
            found[prefix + "self_attn.k_norm.weight"] = (self.head_dim,)
            found[prefix + "mlp.gate_proj.weight"] = (self.intermediate, hidden)
            found[prefix + "mlp.up_proj.weight"] = (self.intermediate, hidden)
            found[prefix + "mlp.down_proj.weight"] = (hidden, self.intermediate)
            found[prefix + "input_layernorm.weight"] = (hidden,)
            found[prefix + "post_attention_layernorm.weight"] = (hidden,)
        found["fc.weight"] = (hidden, len(self.taps) * hidden)
        found["hidden_norm.weight"] = (hidden,)
        found["norm.weight"] = (hidden,)
        if self.selector_rank:
            for name in ("predecessor", "successor"):
                found[f"candidate_selector.{name}_codebook.weight"] = (self.tokens, self.selector_rank)
        if self.draft_vocab:
            found["d2t"] = (self.draft_vocab,)
        return found


def default_taps(count: int, target_layers: int) -> tuple[int, ...]:
    """Evenly spaced from layer 1 to the third-last (DFlash's released code); the middle layer for one."""
    if count == 1:
        return (target_layers // 2,)
    last = target_layers - 3
    if last <= count:
        raise DraftError(f"a target of {target_layers} layers is too shallow for {count} taps")
    return tuple(round(1 + i * (last - 1) / (count - 1)) for i in range(count))


def to_json(config: DFlashConfig) -> dict[str, Any]:
    """``config.json`` of a checkpoint."""
    inner: dict[str, Any] = {
        "block_size": config.block_size,
        "mask_token_id": config.mask_token_id,
        "target_layer_ids": list(config.taps),
    }
    if config.causal:
        inner["causal_head"] = True
    if config.tree_temperatures:
        inner["tree_temperatures"] = list(config.tree_temperatures)
    if config.selector_rank:
        inner["selector_rank"] = config.selector_rank
    made: dict[str, Any] = {
        "architectures": [ARCHITECTURE],
        "model_type": "qwen3",
        "num_hidden_layers": config.layers,
        "num_target_layers": config.target_layers,
        "block_size": config.block_size,
        "dflash_config": inner,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_positions,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "layer_types": ["full_attention"] * config.layers,
    }
    if config.draft_vocab:
        made["draft_vocab_size"] = config.draft_vocab
    return made


def positive(where: str, name: str, value: Any) -> int:
    """``value`` if it is a whole number above 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DraftError(f"{where}: {name} is {value!r}, not a positive number")
    return value


def from_json(raw: dict[str, Any], where: str) -> DFlashConfig:
    """Read a DFlash checkpoint's ``config.json``; ``where`` names it in errors.  For any draft: ``draft_config``."""
    inner = raw.get("dflash_config") or {}
    block = raw.get("block_size", inner.get("block_size"))
    _refuse(raw, inner, where)
    number = partial(positive, where)
    taps, layers = inner.get("target_layer_ids"), number("num_hidden_layers", raw.get("num_hidden_layers"))
    depth = number("num_target_layers", raw.get("num_target_layers"))
    if not isinstance(taps, list) or not taps or not all(isinstance(t, int) and 0 <= t < depth for t in taps):
        raise DraftError(f"{where}: dflash_config.target_layer_ids is {taps!r}, not layers of a target of {depth}")
    if len(set(taps)) != len(taps):
        raise DraftError(f"{where}: dflash_config.target_layer_ids names a layer twice: {taps}")
    heads, hidden = (number(n, raw.get(n)) for n in ("num_attention_heads", "hidden_size"))
    vocab = number("vocab_size", raw.get("vocab_size"))
    mask = inner.get("mask_token_id")
    if not isinstance(mask, int) or not 0 <= mask < vocab:
        raise DraftError(f"{where}: dflash_config.mask_token_id is {mask!r}, not a token of {vocab}")
    rope = raw.get("rope_parameters") or {}
    config = DFlashConfig(
        layers=layers,
        hidden=hidden,
        intermediate=number("intermediate_size", raw.get("intermediate_size")),
        heads=heads,
        kv_heads=number("num_key_value_heads", raw.get("num_key_value_heads", heads)),
        head_dim=number("head_dim", raw.get("head_dim", hidden // heads)),
        vocab=vocab,
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
        block_size=number("block_size", block),
        mask_token_id=mask,
        taps=tuple(taps),
        target_layers=depth,
        causal=bool(inner.get("causal_head", False)),
        draft_vocab=raw.get("draft_vocab_size") or 0,
        max_positions=number("max_position_embeddings", raw.get("max_position_embeddings", 8192)),
        tree_temperatures=tuple(map(float, inner.get("tree_temperatures", ()))),
        selector_rank=number("dflash_config.selector_rank", inner["selector_rank"]) if "selector_rank" in inner else 0,
    )
    heads_fit = config.heads % config.kv_heads == config.head_dim % 2 == 0
    if config.block_size < 2 or not heads_fit or not 0 <= config.draft_vocab <= config.vocab:
        raise DraftError(
            f"{where}: a block of {config.block_size} rows, {config.heads} heads of {config.head_dim} over "
            f"{config.kv_heads} key heads and {config.draft_vocab} of {config.vocab} tokens do not make a draft"
        )
    if config.tree_temperatures and (
        len(config.tree_temperatures) != config.drafted or min(config.tree_temperatures) <= 0
    ):
        raise DraftError(f"{where}: tree_temperatures must be {config.drafted} numbers above 0")
    return config


def _refuse(raw: dict[str, Any], inner: dict[str, Any], where: str) -> None:
    """Everything the format can say that would change what a draft computes and is not built here."""
    refuse_switches(raw, where)
    projector = inner.get("projector_type", "dflash")
    reasons = [
        (any(kind != "full_attention" for kind in raw.get("layer_types") or []), "sliding-window layers"),
        (projector not in ("dflash", "linear", None), f"projector {projector}"),
        (inner.get("target_hidden_size", raw.get("hidden_size")) != raw.get("hidden_size"), "a hidden size of its own"),
        (inner.get("use_aux_hidden_state", True) is False, "a draft without taps"),
    ]
    refuse(reasons, where)


def refuse_switches(raw: dict[str, Any], where: str) -> None:
    """What the config of any decoder may say and no draft's layers do here."""
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    reasons = [
        (rope.get("rope_type", rope.get("type", "default")) != "default", "scaled rotation"),
        (raw.get("attention_bias"), "biases in attention"),
        (raw.get("hidden_act", "silu") != "silu", f"activation {raw.get('hidden_act')}"),
    ]
    refuse(reasons, where)


def refuse(reasons: Iterable[tuple[object, str]], where: str) -> None:
    """Raise for the first of ``reasons``, of (found, what), that was found."""
    for found, what in reasons:
        if found:
            raise DraftError(f"{where}: {what} are not supported by this version")
