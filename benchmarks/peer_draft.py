"""A DFlash draft as transformers' own assisted generation takes it: the same weights, the same rounds, their code.

Their assistant of that kind comes with one model family, but is the published architecture.  It proposes from all of
the target's vocabulary, whatever the draft's own is.
"""

from __future__ import annotations

from typing import Any

import torch

from redraft.drafts.checkpoint import Checkpoint
from redraft.drafts.dflash_config import DFlashConfig

NAMES = {"fc.weight": "encoder.fc.weight", "hidden_norm.weight": "encoder.output_norm_enc.weight"}
"""Tensors that have other names there."""


def assistant(draft: Checkpoint, device: torch.device, dtype: torch.dtype) -> Any:
    """The draft as a transformers model, for ``generate(assistant_model=..., speculation_type="dflash")``.

    Raises ``ImportError`` where transformers has no such generation, and ``DraftError`` or ``ValueError`` for a draft
    that it cannot run.
    """
    from transformers.models.muse_glimmer_assistant import MuseGlimmerAssistantConfig, MuseGlimmerAssistantModel

    config = draft.config_as(DFlashConfig)
    if config.causal:
        raise ValueError("its blocks see themselves both ways, this draft's do not")
    made: Any = MuseGlimmerAssistantModel(
        MuseGlimmerAssistantConfig(
            hidden_size=config.hidden,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=config.max_positions,
            layer_types=["full_attention"] * config.layers,
            block_size=config.block_size,
            mask_token_id=config.mask_token_id,
            target_layer_ids=list(config.taps),
        )
    )
    own = {name for name in config.shapes if name != "d2t" and not name.startswith("candidate_selector")}
    made.load_state_dict({NAMES.get(name, name): draft.tensors[name] for name in own})
    return made.to(device, dtype).eval()
