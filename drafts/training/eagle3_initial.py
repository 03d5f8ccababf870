"""First weights of an EAGLE-3 draft, from its target.

The layer is a copy of one of the target's, with its norms, in the half of the projections that reads the feature; the
half that reads the embedding begins small.  ``fc`` begins as the identity on the deepest tap, the head as the target's
rows of the draft's vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.eagle3_config import Eagle3Config
from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.data import Text
from redraft.drafts.training.eagle3_module import Eagle3Module
from redraft.drafts.training.initial import SMALLEST, identity_on_deepest
from redraft.drafts.training.teacher import Teacher

SMALL = 0.02
"""Scale of what reads the embedding: a little better than 0, much better than a whole layer at random (docs/log.md)."""
SAME = ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "post_attention_layernorm")
"""What is copied as it is."""


@torch.no_grad()
def initial_eagle3(
    config: Eagle3Config,
    teacher: Teacher,
    vocabulary: Vocabulary,
    copied: int,
    sample: Text,
    seed: int,
    output_scale: float,
) -> Eagle3Module:
    """A draft whose layer is the target's layer ``copied``.

    ``sample`` is read once to set the scale of queries and keys where the target norms them, which the draft does not.
    ``output_scale`` multiplies the projections back into the residual stream.
    """
    if not 0 <= copied < config.target_layers:
        raise DraftError(f"layer {copied} cannot be copied from a target of {config.target_layers} layers")
    torch.manual_seed(seed)
    module = Eagle3Module(config)
    prefix = f"model.layers.{copied}."

    def weight(name: str) -> Tensor:
        return teacher.weight(f"{prefix}{name}.weight").float().cpu()

    made = {f"midlayer.{name}.weight": weight(name) for name in SAME}
    for name in ("o_proj", "down_proj"):
        made |= {key: tensor * output_scale for key, tensor in made.items() if key.endswith(f"{name}.weight")}
    for name in ("q", "k", "v"):
        read = weight(f"self_attn.{name}_proj")
        made[f"midlayer.self_attn.{name}_proj.weight"] = torch.cat((SMALL * torch.randn(read.shape), read), 1)
    made["midlayer.hidden_norm.weight"] = weight("input_layernorm")
    made["midlayer.input_layernorm.weight"] = torch.ones(config.hidden)
    made["fc.weight"] = identity_on_deepest(config.taps, config.hidden)
    made["norm.weight"] = teacher.weight("model.norm.weight").float().cpu()
    made["lm_head.weight"] = vocabulary.head.float().cpu()
    for name, parameter in module.named_parameters():
        if made[name].shape != parameter.shape:
            shape = tuple(parameter.shape)
            raise DraftError(f"a draft of these sizes cannot start from the target's layers: {name} would be {shape}")
    module.load_state_dict(made)
    if f"{prefix}self_attn.q_norm.weight" in teacher:
        _take_in_norms(module, teacher, prefix, sample)
    return module


def _take_in_norms(module: Eagle3Module, teacher: Teacher, prefix: str, sample: Text) -> None:
    """Scale the projections to queries and keys as the target's norms of them do on ``sample``, head by head."""
    config, attention = module.config, module.midlayer.self_attn
    feature = module.fc(teacher.states(sample.tokens, config.taps).taps.float().cpu())
    rows = module.midlayer.rows(feature, torch.zeros_like(feature))
    for name, project in (("q_norm", attention.q_proj), ("k_norm", attention.k_proj)):
        heads = project(rows).unflatten(-1, (-1, attention.dim))
        size = heads.square().mean((0, 2)).sqrt().unsqueeze(1)  # [heads, 1]
        scale = teacher.weight(f"{prefix}self_attn.{name}.weight").float().cpu() / size.clamp_min(SMALLEST)
        project.weight.mul_(scale.flatten().unsqueeze(1))
