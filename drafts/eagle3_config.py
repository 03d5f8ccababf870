"""What an EAGLE-3 draft is: its sizes, and the tensors of the published checkpoint (arXiv 2503.01840).

Torch-free.  One decoder layer reads, side by side, the embedding of a token and a feature of the token before it: the
target's own tapped states, fused, or in later steps of drafting the layer's own output.

``eagle_config`` holds what a Llama's ``config.json`` has no place for.  Its ``eagle_aux_hidden_state_layer_ids`` count
layers from 0 and tap their *output*, as SGLang reads them and Model Optimizer writes them (lmsys's draft for a target
of 94 layers: 1, 46, 90); older drafts put them at the top level or leave them out, and with them how deep their target
is: then the taps are the default ones of whatever target the draft is given.  ``num_target_layers``, ``steps`` and
``tree_temperatures`` are this project's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from redraft.drafts.dflash_config import DraftError, positive, refuse, refuse_switches

ARCHITECTURE = "LlamaForCausalLMEagle3"


TAPS = 3
"""As many as the published drafts have."""


@dataclass(frozen=True, slots=True)
class Eagle3Config:
    """Sizes of a draft; hidden size, vocabulary and epsilon are its target's."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    norm_eps: float
    rope_theta: float
    taps: tuple[int, ...]
    """Target layers, from 0, whose outputs are fused into a feature; empty: the three default ones."""
    target_layers: int
    """0 where the checkpoint does not say; ``for_target`` fills it in."""
    draft_vocab: int
    """Tokens the draft can propose; the head is the draft's own."""
    steps: int = 7
    """Passes of the layer a round, each of which drafts one token further."""
    max_positions: int = 8192
    tree_temperatures: tuple[float, ...] = ()
    """Per depth, what the logits are divided by before trees are scored; empty: 1 everywhere."""

    @property
    def drafted(self) -> int:
        """Tokens of a chain."""
        return self.steps

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the checkpoint by its published name; ``d2t`` holds offsets, ``t2d`` is a mask."""
        hidden, attention, mlp = self.hidden, "midlayer.self_attn.", "midlayer.mlp."
        return {
            "fc.weight": (hidden, (len(self.taps) or TAPS) * hidden),
            "midlayer.input_layernorm.weight": (hidden,),
            "midlayer.hidden_norm.weight": (hidden,),
            f"{attention}q_proj.weight": (self.query_width, 2 * hidden),
            f"{attention}k_proj.weight": (self.kv_width, 2 * hidden),
            f"{attention}v_proj.weight": (self.kv_width, 2 * hidden),
            f"{attention}o_proj.weight": (hidden, self.query_width),
            "midlayer.post_attention_layernorm.weight": (hidden,),
            f"{mlp}gate_proj.weight": (self.intermediate, hidden),
            f"{mlp}up_proj.weight": (self.intermediate, hidden),
            f"{mlp}down_proj.weight": (hidden, self.intermediate),
            "norm.weight": (hidden,),
            "lm_head.weight": (self.draft_vocab, hidden),
            "d2t": (self.draft_vocab,),
            "t2d": (self.vocab,),
        }

    def for_target(self, layers: int) -> Eagle3Config:
        """The config with nothing left open, as a draft for a target of ``layers``; unchanged if nothing was."""
        taps, depth = self.taps or default_taps(layers), self.target_layers or layers
        if max(taps) >= depth:
            raise DraftError(f"the draft taps layers {', '.join(map(str, taps))}; the target has {depth}")
        return replace(self, taps=taps, target_layers=depth)


def default_taps(target_layers: int) -> tuple[int, ...]:
    """Layers 1, N // 2 - 1 and N - 4: the published "before layer 2, N // 2, N - 3"."""
    taps = 1, target_layers // 2 - 1, target_layers - 4
    if not 1 < taps[1] < taps[2]:
        raise DraftError(f"a target of {target_layers} layers is too shallow for the default taps of EAGLE-3")
    return taps


def to_json(config: Eagle3Config) -> dict[str, Any]:
    """``config.json`` of a checkpoint."""
    inner: dict[str, Any] = {"use_aux_hidden_state": True, "steps": config.steps}
    if config.taps:
        inner["eagle_aux_hidden_state_layer_ids"] = list(config.taps)
    if config.target_layers:
        inner["num_target_layers"] = config.target_layers
    if config.tree_temperatures:
        inner["tree_temperatures"] = list(config.tree_temperatures)
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab,
        "draft_vocab_size": config.draft_vocab,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_positions,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "eagle_config": inner,
    }


def from_json(raw: dict[str, Any], where: str) -> Eagle3Config:
    """Read an EAGLE-3 checkpoint's ``config.json``; ``where`` names it in errors.  For any draft: ``draft_config``."""
    inner = raw.get("eagle_config") or {}
    _refuse(raw, inner, where)
    number = partial(positive, where)
    heads, hidden, vocab = (number(n, raw.get(n)) for n in ("num_attention_heads", "hidden_size", "vocab_size"))
    depth = inner.get("num_target_layers")
    config = Eagle3Config(
        hidden=hidden,
        intermediate=number("intermediate_size", raw.get("intermediate_size")),
        heads=heads,
        kv_heads=number("num_key_value_heads", raw.get("num_key_value_heads", heads)),
        head_dim=number("head_dim", raw.get("head_dim") or hidden // heads),
        vocab=vocab,
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=float((raw.get("rope_parameters") or {}).get("rope_theta") or raw.get("rope_theta") or 10000.0),
        taps=_taps(raw, inner, where),
        target_layers=0 if depth is None else number("eagle_config.num_target_layers", depth),
        draft_vocab=number("draft_vocab_size", raw.get("draft_vocab_size") or vocab),
        steps=number("eagle_config.steps", inner.get("steps", 7)),
        max_positions=number("max_position_embeddings", raw.get("max_position_embeddings", 8192)),
        tree_temperatures=tuple(map(float, inner.get("tree_temperatures", ()))),
    )
    if config.heads % config.kv_heads or config.head_dim % 2 or config.draft_vocab > config.vocab:
        raise DraftError(
            f"{where}: {config.heads} heads of {config.head_dim} over {config.kv_heads} key heads and "
            f"{config.draft_vocab} of {config.vocab} tokens do not make a draft"
        )
    if depth is not None and max(config.taps, default=0) >= depth:
        raise DraftError(f"{where}: taps {config.taps} are not layers of a target of {depth}")
    temperatures = config.tree_temperatures
    if temperatures and (len(temperatures) != config.steps or not min(temperatures) > 0):
        raise DraftError(f"{where}: tree_temperatures must be {config.steps} numbers above 0")
    return config


def _taps(raw: dict[str, Any], inner: dict[str, Any], where: str) -> tuple[int, ...]:
    name = "eagle_aux_hidden_state_layer_ids"
    taps = inner.get(name, raw.get(name))
    if taps is None:
        return ()
    whole = isinstance(taps, list) and all(type(tap) is int and tap >= 0 for tap in taps)
    if not whole or not taps or len(set(taps)) != len(taps):
        raise DraftError(f"{where}: {name} is {taps!r}, not different layers of a target")
    return tuple(taps)


def _refuse(raw: dict[str, Any], inner: dict[str, Any], where: str) -> None:
    """Everything the format can say that would change what a draft computes and is not built here."""
    refuse_switches(raw, where)
    hidden = raw.get("hidden_size")
    switches = ("norm_before_residual", "norm_before_fc", "fc_norm", "parallel_drafting", "use_mtp_layernorm")
    norms = ("use_input_layernorm_in_first_layer", "use_last_layernorm")
    reasons = [
        (raw.get("num_hidden_layers", 1) != 1, "more layers than one"),
        (raw.get("mlp_bias"), "biases in the MLP"),
        (raw.get("sliding_window") and raw.get("use_sliding_window", True), "sliding-window layers"),
        (raw.get("target_hidden_size", hidden) != hidden, "a hidden size of its own"),
        (inner.get("use_aux_hidden_state", True) is False, "a draft without taps"),
        *((part.get(name), f"drafts with {name}") for part in (raw, inner) for name in switches),
        *((inner.get(name, True) is False, f"drafts without {name}") for name in norms),
    ]
    refuse(reasons, where)
