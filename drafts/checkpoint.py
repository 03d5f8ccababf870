"""Read and write a draft's folder: ``config.json`` and ``model.safetensors``, in the published DFlash format.

A pruned vocabulary adds ``d2t`` as EAGLE-3's checkpoints have it: target id = row + d2t[row].  Never pickle.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from redraft.drafts.dflash_config import DFlashConfig, DraftError, from_json, to_json
from redraft.drafts.shipped import CARD, read_card, read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A draft as it lies on disk."""

    config: DFlashConfig
    tensors: dict[str, Tensor]
    """By published name; ``d2t`` int64 where the vocabulary is pruned."""
    card: dict[str, Any]
    """What it was trained for and how; empty where the folder has no ``card.json``."""

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
    _check(config, tensors, folder)
    kept = {name: tensors[name] for name in config.shapes}
    return Checkpoint(config, kept, read_card(folder))


def _check(config: DFlashConfig, tensors: dict[str, Tensor], folder: Path) -> None:
    wanted = config.shapes
    missing = sorted(set(wanted) - set(tensors))
    if missing:
        raise DraftError(f"{folder}: the checkpoint lacks {', '.join(missing[:5])}{' ...' * (len(missing) > 5)}")
    unknown = sorted(set(tensors) - set(wanted) - {"t2d", "embed_tokens.weight", "lm_head.weight"})
    if unknown:
        raise DraftError(
            f"{folder}: {', '.join(unknown[:5])} mean{'s' * (len(unknown) == 1)} nothing to a DFlash draft; "
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


def write_draft(
    folder: Path,
    config: DFlashConfig,
    weights: dict[str, Tensor],
    vocabulary: tuple[int, ...] | None,
    card: dict[str, Any],
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a draft into ``folder``, weights last and by rename, so that no reader meets half a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: weights[name].detach().to("cpu", dtype).contiguous() for name in config.shapes if name != "d2t"}
    if vocabulary is not None:
        tensors["d2t"] = torch.tensor(vocabulary) - torch.arange(len(vocabulary))
    (folder / CONFIG).write_text(json.dumps(to_json(config), indent=2) + "\n")
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")
    part = folder / f"{WEIGHTS}.part"
    save_file(tensors, part)
    part.chmod(0o644)  # safetensors makes it the owner's alone
    part.replace(folder / WEIGHTS)
