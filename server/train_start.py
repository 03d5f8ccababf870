"""What a run begins with: the draft's sizes, its tokens, and its first weights, new or those of ``--start``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from redraft.drafts import dflash_config, eagle3_config
from redraft.drafts.checkpoint import MAPS, Checkpoint
from redraft.drafts.dflash_config import DFlashConfig, DraftError
from redraft.drafts.draft_config import DraftConfig
from redraft.drafts.eagle3_config import Eagle3Config
from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.data import Text, common_tokens
from redraft.drafts.training.eagle3_initial import initial_eagle3
from redraft.drafts.training.eagle3_module import Eagle3Module
from redraft.drafts.training.eagle3_settings import Eagle3Settings
from redraft.drafts.training.initial import initial_module
from redraft.drafts.training.module import DFlashModule
from redraft.drafts.training.opd_settings import OpdSettings
from redraft.drafts.training.selector_settings import SelectorSettings
from redraft.drafts.training.settings import SftSettings
from redraft.drafts.training.teacher import Teacher
from redraft.server.engine.target.spec import TargetSpec

Settings = SftSettings | OpdSettings | Eagle3Settings | SelectorSettings


def kept_tokens(
    settings: Settings, spec: TargetSpec, texts: Sequence[Text], start: Checkpoint | None = None
) -> tuple[int, ...] | None:
    """The draft's vocabulary, None for all of the target's; that of ``start`` stays what it is."""
    if start is not None:
        return None if start.vocabulary is None else tuple(start.vocabulary.tolist())
    size = 0
    if isinstance(settings, SftSettings):
        size = settings.vocab
    elif isinstance(settings, Eagle3Settings):
        size = settings.draft_vocab
    return common_tokens(texts, size, spec.vocab, always=spec.eos_token_ids) if 0 < size < spec.vocab else None


def first_draft(
    spec: TargetSpec,
    teacher: Teacher,
    vocabulary: Vocabulary,
    settings: Settings,
    sample: Text,
    start: Checkpoint | None,
) -> tuple[DraftConfig, nn.Module]:
    """The draft before its first step; ``sample`` is a text of the run."""
    if start is not None:
        return _gone_on_from(start, spec, settings)
    if isinstance(settings, OpdSettings | SelectorSettings):
        raise DraftError("there is nothing to train on-policy, or a selector for, without a draft to start from")
    size, seed, scale = len(vocabulary.ids), settings.seed, settings.output_scale
    if isinstance(settings, Eagle3Settings):
        eagle3 = new_eagle3(spec, settings, size)
        copied = settings.copied if settings.copied >= 0 else spec.layers - 1
        return eagle3, initial_eagle3(eagle3, teacher, vocabulary, copied, sample, seed, scale)
    dflash = new_dflash(spec, settings, 0 if size == spec.vocab else size)
    layers = settings.copied or tuple(range(spec.layers - settings.layers, spec.layers))
    return dflash, initial_module(dflash, teacher, layers, sample, seed, scale)


def _gone_on_from(start: Checkpoint, spec: TargetSpec, settings: Settings) -> tuple[DraftConfig, nn.Module]:
    config, module = start.config, nn.Module()
    eagle3 = isinstance(config, Eagle3Config)
    if not isinstance(settings, OpdSettings) and eagle3 != isinstance(settings, Eagle3Settings):
        kinds = ("an EAGLE-3", "eagle3 or opd goes") if eagle3 else ("a DFlash", "sft, opd or selector goes")
        raise DraftError(f"--start is {kinds[0]} draft; redraft train {kinds[1]} on from it")
    if isinstance(config, Eagle3Config):
        config = config.for_target(spec.layers)
        if isinstance(settings, Eagle3Settings) and config.steps != settings.depth:
            config = replace(config, steps=settings.depth, tree_temperatures=())
        module = Eagle3Module(config)
    else:
        if isinstance(settings, SelectorSettings):
            config = _with_selector(config, settings)
        module = DFlashModule(config)
    ours, theirs = (spec.hidden, spec.vocab, spec.layers), (config.hidden, config.vocab, config.target_layers)
    if ours != theirs:
        raise DraftError(
            f"--start is a draft for a target with hidden size, vocabulary and layers {theirs}; this one has {ours}"
        )
    found = {name: tensor.float() for name, tensor in start.tensors.items() if name not in MAPS}
    module.load_state_dict(module.state_dict() | found)
    return config, module


def _with_selector(config: DFlashConfig, settings: SelectorSettings) -> DFlashConfig:
    if config.selector_rank not in (0, settings.rank):
        raise DraftError(f"--start has a selector of rank {config.selector_rank} already; give that as --rank")
    torch.manual_seed(settings.seed)
    return replace(config, selector_rank=settings.rank)


def new_dflash(spec: TargetSpec, settings: SftSettings, draft_vocab: int) -> DFlashConfig:
    """The DFlash draft that ``settings`` ask for; ``draft_vocab`` is 0 for all of the target's tokens."""
    if not 0 <= settings.mask_token_id < spec.vocab:
        raise DraftError(f"mask token {settings.mask_token_id} is not in the target's vocabulary of {spec.vocab}")
    config = DFlashConfig(
        layers=settings.layers,
        hidden=spec.hidden,
        intermediate=spec.intermediate,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        vocab=spec.vocab,
        norm_eps=spec.norm_eps,
        rope_theta=spec.rope_theta,
        block_size=settings.block_size,
        mask_token_id=settings.mask_token_id,
        taps=settings.taps or dflash_config.default_taps(settings.tap_count, spec.layers),
        target_layers=spec.layers,
        causal=settings.causal,
        draft_vocab=draft_vocab,
        max_positions=spec.context,
    )
    _check_taps(config.taps, spec)
    return config


def new_eagle3(spec: TargetSpec, settings: Eagle3Settings, draft_vocab: int) -> Eagle3Config:
    """The EAGLE-3 draft that ``settings`` ask for."""
    config = Eagle3Config(
        hidden=spec.hidden,
        intermediate=spec.intermediate,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        vocab=spec.vocab,
        norm_eps=spec.norm_eps,
        rope_theta=spec.rope_theta,
        taps=settings.taps or eagle3_config.default_taps(spec.layers),
        target_layers=spec.layers,
        draft_vocab=draft_vocab,
        steps=settings.depth,
        max_positions=spec.context,
    )
    _check_taps(config.taps, spec)
    return config


def _check_taps(taps: tuple[int, ...], spec: TargetSpec) -> None:
    if not all(0 <= tap < spec.layers for tap in taps) or len(set(taps)) != len(taps):
        raise DraftError(f"taps {taps} are not different layers of a target of {spec.layers}")
