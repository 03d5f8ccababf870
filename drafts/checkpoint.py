"""Read and write a draft's folder: ``config.json`` and ``model.safetensors``, in the published format of its kind.

A vocabulary of the draft's own is ``d2t`` [V'], target id = row + d2t[row], and for EAGLE-3 also ``t2d`` [V] bool, true
for the target's tokens that the draft has.  Never pickle.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from redraft.drafts.dflash_config import DFlashConfig, DraftError
from redraft.drafts.draft_config import DraftConfig, from_json, to_json
from redraft.drafts.eagle3_config import Eagle3Config
from redraft.drafts.shipped import CARD, read_card, read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MAPS = ("d2t", "t2d")
"""Tensors that are no weights but say which tokens the draft has."""

Config = TypeVar("Config", DFlashConfig, Eagle3Config)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A draft as it lies on disk."""

    config: DraftConfig
    tensors: dict[str, Tensor]
    """By published name; ``d2t`` where the vocabulary is the draft's own, ``t2d`` bool for EAGLE-3."""
    card: dict[str, Any]
    """What it was trained for and how; empty where the folder has no ``card.json``."""

    def config_as(self, kind: type[Config]) -> Config:
        """The config, which has to be of ``kind``; ``DraftError`` if this is a draft of another architecture."""
        if not isinstance(self.config, kind):
            wanted, got = (name.removesuffix("Config") for name in (kind.__name__, type(self.config).__name__))
            raise DraftError(f"this needs a {wanted} draft; the one given is {got}")
        return self.config

    def for_target(self, layers: int) -> Checkpoint:
        """The draft with what its config leaves to its target, of ``layers``, filled in."""
        return replace(self, config=self.config.for_target(layers)) if isinstance(self.config, Eagle3Config) else self

    @property
    def version(self) -> str:
        """Changes with any weight."""
        digest = hashlib.sha256(json.dumps(to_json(self.config), sort_keys=True).encode())
        for name in sorted(self.tensors):
            digest.update(name.encode())
            digest.update(self.tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:8]

    @property
    def vocabulary(self) -> Tensor | None:
        """[V'] target ids of the draft's tokens; None for all."""
        offsets = self.tensors.get("d2t")
        return None if offsets is None else torch.arange(len(offsets)) + offsets


def read_draft(folder: Path) -> Checkpoint:
    """Load a draft; ``DraftError`` says what is wrong with it."""
    path = folder / CONFIG
    if not path.is_file():
        raise DraftError(f"{folder}: no {CONFIG}; a draft is a folder with {CONFIG} and {WEIGHTS}")
    config = from_json(read_json(path), str(path))
    tensors: dict[str, Tensor] = {}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DraftError(f"{folder}: no *.safetensors file (pickled weights are not loaded)")
    for path in files:
        try:
            with safe_open(path, framework="pt") as opened:
                tensors.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise DraftError(f"{path}: damaged or not safetensors ({error})") from None
    if isinstance(config, DFlashConfig):  # some carry the target's, which is not asked for
        tensors = {name: tensor for name, tensor in tensors.items() if name not in ("t2d", "lm_head.weight")}
    elif "d2t" not in tensors and config.draft_vocab == config.vocab:
        tensors["d2t"] = torch.zeros(config.vocab, dtype=torch.int64)
    _check(config, tensors, folder)
    if "t2d" in config.shapes:
        _check_mask(tensors, config.vocab, folder)
    kept = {name: tensors[name] for name in config.shapes}
    return Checkpoint(config, kept, read_card(folder))


def _check(config: DraftConfig, tensors: dict[str, Tensor], folder: Path) -> None:
    wanted = {name: shape for name, shape in config.shapes.items() if name != "t2d"}
    missing = sorted(set(wanted) - set(tensors))
    if missing:
        raise DraftError(f"{folder}: the checkpoint lacks {', '.join(missing[:5])}{' ...' * (len(missing) > 5)}")
    unknown = sorted(set(tensors) - set(config.shapes) - {"embed_tokens.weight"})
    if unknown:
        kind = "a DFlash" if isinstance(config, DFlashConfig) else "an EAGLE-3"
        raise DraftError(
            f"{folder}: {', '.join(unknown[:5])} mean{'s' * (len(unknown) == 1)} nothing to {kind} draft; "
            "this may be a descendant of it that this version does not serve"
        )
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise DraftError(f"{folder}: {name} is {tuple(tensors[name].shape)}, config.json makes it {shape}")
        if name != "d2t" and not bool(tensors[name].isfinite().all()):
            raise DraftError(f"{folder}: {name} holds values that are not finite")
    if "d2t" in wanted:
        if tensors["d2t"].is_floating_point():
            raise DraftError(f"{folder}: d2t is {tensors['d2t'].dtype}, not whole numbers")
        ids = torch.arange(config.draft_vocab) + tensors["d2t"].long()
        if not bool(((ids >= 0) & (ids < config.vocab)).all()) or len(set(ids.tolist())) != len(ids):
            raise DraftError(f"{folder}: d2t does not map to {config.draft_vocab} different ids below {config.vocab}")


def _check_mask(tensors: dict[str, Tensor], vocab: int, folder: Path) -> None:
    """``t2d`` says again what a sound ``d2t`` says; it is made where a checkpoint lacks it."""
    offsets = tensors["d2t"].long()
    mask = _mask(torch.arange(len(offsets)) + offsets, vocab)
    given = tensors.get("t2d", mask)
    if given.shape != mask.shape or not torch.equal(given.bool(), mask):
        raise DraftError(f"{folder}: t2d does not mark the {len(offsets)} tokens that d2t maps to")
    tensors["t2d"] = mask


def _mask(ids: Tensor, vocab: int) -> Tensor:
    return torch.zeros(vocab, dtype=torch.bool).index_fill_(0, ids, True)


def write_draft(
    folder: Path,
    config: DraftConfig,
    weights: dict[str, Tensor],
    vocabulary: tuple[int, ...] | None,
    card: dict[str, Any],
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a draft into ``folder``, weights last and by rename, so that no reader meets half a checkpoint.

    ``vocabulary``: the target's ids of the draft's tokens, in the order of its head's rows, without which an EAGLE-3
    draft has all of the target's; ``MAPS`` are made of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: weights[name].detach().to("cpu", dtype).contiguous() for name in config.shapes if name not in MAPS}
    if vocabulary is None and config.draft_vocab == config.vocab:
        vocabulary = tuple(range(config.vocab))
    if vocabulary is not None:
        ids = torch.tensor(vocabulary)
        tensors["d2t"] = ids - torch.arange(len(ids))
        if "t2d" in config.shapes:
            tensors["t2d"] = _mask(ids, config.vocab)
    (folder / CONFIG).write_text(json.dumps(to_json(config), indent=2) + "\n")
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")
    part = folder / f"{WEIGHTS}.part"
    save_file(tensors, part)
    part.chmod(0o644)  # safetensors makes it the owner's alone
    part.replace(folder / WEIGHTS)
