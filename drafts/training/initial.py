"""First weights of a draft, from its target's layers **with their norms**, so that it starts with keys and values that
mean something.

The fused context of all layers passes one norm, where the target has one a layer.  So ``hidden_norm`` takes the first
copied layer's, and the others' input norms and q, k, v projections are rescaled by the ratio, which changes nothing of
what they compute.  ``fc`` begins as the identity on the deepest tap.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from redraft.drafts.dflash_config import DFlashConfig, DraftError
from redraft.drafts.training.data import Text
from redraft.drafts.training.module import DFlashModule
from redraft.drafts.training.teacher import Teacher

COPIED = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "input_layernorm",
    "post_attention_layernorm",
)
SMALLEST = 1e-3
"""Norm scales below this are not divided by."""


@torch.no_grad()
def initial_module(
    config: DFlashConfig, teacher: Teacher, copied: Sequence[int], sample: Text, seed: int, output_scale: float
) -> DFlashModule:
    """A draft whose layer i is the target's layer ``copied[i]``.

    ``sample`` is read once to set the scale of queries and keys, which the draft norms and a Llama does not.
    ``output_scale`` multiplies the projections back into the residual stream, which here begins as an embedding.
    """
    if len(copied) != config.layers or not all(0 <= layer < config.target_layers for layer in copied):
        raise DraftError(f"{config.layers} layers cannot be copied from the target's {list(copied)}")
    torch.manual_seed(seed)
    module = DFlashModule(config)
    fused = identity_on_deepest(config.taps, config.hidden)
    made = {"fc.weight": fused, "norm.weight": teacher.weight("model.norm.weight").float().cpu()}
    common = _norm(teacher, copied[0])
    made["hidden_norm.weight"] = common
    for number, source in enumerate(copied):
        made |= _layer(config, teacher, number, source, common)
    for name in made:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            made[name] = made[name] * output_scale
    module.load_state_dict(made, strict=False)
    if f"model.layers.{copied[0]}.self_attn.q_norm.weight" not in teacher:
        _scale_queries_and_keys(module, teacher, sample)
    return module


def identity_on_deepest(taps: Sequence[int], width: int) -> Tensor:
    """First ``fc`` [width, n * width]: the deepest tap as it is, and a little at random of the others."""
    fc: Tensor = torch.randn(width, len(taps) * width) * 0.02 / len(taps) ** 0.5
    deepest = taps.index(max(taps))
    fc[:, deepest * width : (deepest + 1) * width] = torch.eye(width)
    return fc


def _norm(teacher: Teacher, layer: int) -> Tensor:
    return teacher.weight(f"model.layers.{layer}.input_layernorm.weight").float().cpu()


def _layer(config: DFlashConfig, teacher: Teacher, number: int, source: int, common: Tensor) -> dict[str, Tensor]:
    prefix = f"model.layers.{source}."
    made = {f"layers.{number}.{name}.weight": teacher.weight(f"{prefix}{name}.weight").float().cpu() for name in COPIED}
    for name in ("k_proj", "v_proj"):
        key = f"layers.{number}.self_attn.{name}.weight"
        made[key] = _more_heads(made[key], config)
    for name, shape in config.shapes.items():
        if name in made and tuple(made[name].shape) != shape:
            raise DraftError(f"a draft of these sizes cannot start from the target's layers: {name} would be {shape}")
    ratio = _norm(teacher, source) / torch.where(common.abs() < SMALLEST, SMALLEST, common)
    made[f"layers.{number}.input_layernorm.weight"] = common.clone()
    for name in ("q", "k", "v"):
        made[f"layers.{number}.self_attn.{name}_proj.weight"] *= ratio
    for name in ("q_norm", "k_norm"):
        key = f"{prefix}self_attn.{name}.weight"
        if key in teacher:
            made[f"layers.{number}.self_attn.{name}.weight"] = teacher.weight(key).float().cpu()
    return made


def _more_heads(weight: Tensor, config: DFlashConfig) -> Tensor:
    """A projection to keys or values [HKV * HD, H], every head repeated where the draft has more: queries see the same.

    A draft reads the text through its keys and values alone, so it can use more heads of them than its target.
    """
    if len(weight) % config.head_dim or weight.shape[1] != config.hidden:
        return weight  # of another size, which is refused with the others
    heads = weight.view(-1, config.head_dim, config.hidden)
    return heads.repeat_interleave(config.kv_heads // len(heads), 0).flatten(0, 1)


def _scale_queries_and_keys(module: DFlashModule, teacher: Teacher, sample: Text) -> None:
    """Give the norms of queries and keys the mean size that the target's have on ``sample``."""
    taps = teacher.states(sample.tokens, module.config.taps).taps.float().cpu()
    context = module.hidden_norm(module.fc(taps))
    for layer in module.layers:
        attention = layer.self_attn
        for project, norm in ((attention.q_proj, attention.q_norm), (attention.k_proj, attention.k_norm)):
            heads = project(context).unflatten(-1, (-1, attention.dim))
            norm.weight.fill_(heads.square().mean(-1).sqrt().mean())
