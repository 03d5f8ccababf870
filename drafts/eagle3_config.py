"""What an EAGLE-3 draft is: its sizes, and the tensors of the published checkpoint (arXiv 2503.01840).

Torch-free.  One decoder layer reads, side by side, the embedding of a token and a feature of the token before it: the
target's own tapped states, fused, or in later steps of drafting the layer's own output.
"""

from __future__ import annotations

from dataclasses import dataclass

ARCHITECTURE = "LlamaForCausalLMEagle3"


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
    """Target layers, from 0, whose outputs are fused into a feature; three."""
    target_layers: int
    draft_vocab: int
    """Tokens the draft can propose; the head is the draft's own."""
    steps: int = 7
    """Passes of the layer a round, each of which drafts one token further."""
    max_positions: int = 8192
    tree_temperatures: tuple[float, ...] = ()
    """Per depth, what the logits are divided by before trees are scored; empty: 1 everywhere."""

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
            "fc.weight": (hidden, len(self.taps) * hidden),
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


def default_taps(target_layers: int) -> tuple[int, ...]:
    """Layers 1, N // 2 - 1 and N - 4: the published "before layer 2, N // 2, N - 3"."""
    return 1, target_layers // 2 - 1, target_layers - 4
