"""Which draft serves a target: ``--draft``, else the shipped one made for its weights, else n-gram lookup.

What is decided here needs no weights of the target; ``make`` builds the drafter once they are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from redraft.drafts.base import NO_CONTEXT, Context, Drafter
from redraft.drafts.checkpoint import Checkpoint, read_draft
from redraft.drafts.dflash_config import DFlashConfig, DraftError
from redraft.drafts.merged import MergedDrafter
from redraft.drafts.ngram import NgramDrafter
from redraft.drafts.none import NoDrafter
from redraft.drafts.trained import context_of, make_drafter
from redraft.kernels.ngram import MAX_NODES as MAX_DRAFTED
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.draft_errors import as_redraft_error
from redraft.server.engine.draft_resolve import ResolvedDraft, default_draft
from redraft.server.engine.target.spec import TargetSpec
from redraft.server.engine.types import RedraftError

MAX_NODES = {"cpu": 11, "cuda": 15}
"""Drafted nodes per request and round: on a CPU 12 rows cost little more than one (docs/log.md)."""

Make = Callable[[Tensor, Callable[[], Tensor], int], Drafter]
"""Of the target's embedding [V, H], what reads its head [V, H] if that is wanted, and the bound of positions."""


@dataclass(frozen=True, slots=True)
class DraftChoice:
    """A draft that was found and fits, before there are weights to run it with."""

    why: str
    """A line for the operator."""
    nodes: int
    """Rows a request gets in a round, the root not counted, when there is room for all."""
    candidates: int
    """Nodes proposed, of which these are the best."""
    make: Make
    context: Context = NO_CONTEXT


def choose_draft(config: EngineConfig, spec: TargetSpec, device: torch.device) -> DraftChoice:
    """The draft ``config`` names, or the default of this target; ``RedraftError`` says why one cannot serve."""
    asked = int(config.speculation) if config.speculation.isdecimal() else MAX_NODES[device.type]
    nodes = asked if config.max_nodes is None else config.max_nodes
    if config.draft == "none" or nodes == 0:
        _check_own_tokens(config, False)
        return DraftChoice("draft: none, plain decoding as asked", 0, 0, lambda *_: NoDrafter())
    if not 1 <= nodes <= MAX_DRAFTED:
        raise RedraftError(f"--max-nodes and --speculation must lie in 0 ... {MAX_DRAFTED}, not {nodes}")

    def ngram() -> NgramDrafter:
        return NgramDrafter(config.max_num_seqs, spec.vocab, device, nodes)

    with as_redraft_error():
        found = ResolvedDraft(config.draft, config.draft_why) if config.draft else default_draft(config.target_sha)
        if found.draft == "ngram":
            _check_own_tokens(config, False)
            return DraftChoice(f"draft: ngram, {found.why}", nodes, nodes, lambda *_: ngram())
        folder = Path(found.draft)
        checkpoint = _fitting(folder, spec)
    _check_own_tokens(config, isinstance(checkpoint.config, DFlashConfig) and checkpoint.vocabulary is not None)
    name = str(checkpoint.card.get("name") or _folder_name(folder))
    if config.draft_ngram and nodes > MAX_DRAFTED // 2:
        raise RedraftError(
            f"--max-nodes and --speculation must lie in 0 ... {MAX_DRAFTED // 2} with n-gram lookup in the tree, "
            f"not {nodes}"
        )

    def trained(embedding: Tensor, head: Callable[[], Tensor], positions: int) -> Drafter:
        made = make_drafter(
            checkpoint, embedding, head, positions, nodes, name, config.draft_branch, config.draft_own_tokens
        )
        return MergedDrafter(made, ngram()) if config.draft_ngram else made

    also = ", with n-gram lookup in the same tree" if config.draft_ngram else ""
    return DraftChoice(
        why=f"draft: {name}, {found.why}{also}{_mismatch(checkpoint, config)}",
        nodes=nodes,
        candidates=2 * nodes if config.draft_ngram else nodes,
        make=trained,
        context=context_of(checkpoint, nodes, config.draft_branch),
    )


def _check_own_tokens(config: EngineConfig, possible: bool) -> None:
    """Refuse an option that would be ignored."""
    if config.draft_own_tokens and not possible:
        raise RedraftError("--draft-own-tokens needs a DFlash draft with a pruned vocabulary; leave it out")


def _folder_name(folder: Path) -> str:
    """What to call a draft without a card; the hub's cache names its folders by commit."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    return folder.name


def _fitting(folder: Path, spec: TargetSpec) -> Checkpoint:
    """The draft in ``folder``; refused by its sizes if it is another target's."""
    checkpoint = read_draft(folder)
    try:
        checkpoint = checkpoint.for_target(spec.layers)
    except DraftError as error:
        raise DraftError(f"{folder}: {error}") from None
    draft = checkpoint.config
    pairs = [
        ("hidden size", draft.hidden, spec.hidden),
        ("vocabulary", draft.vocab, spec.vocab),
        ("target layers", draft.target_layers, spec.layers),
    ]
    wrong = [f"{what} {ours} (this target: {theirs})" for what, ours, theirs in pairs if ours != theirs]
    if wrong:
        raise DraftError(f"{folder} is a draft for another target: {', '.join(wrong)}")
    return checkpoint


def _mismatch(checkpoint: Checkpoint, config: EngineConfig) -> str:
    """A warning where the card names other weights: the output stays right, the speed may not."""
    trained_for = checkpoint.card.get("target_sha")
    if trained_for is None or trained_for == config.target_sha:
        return ""
    return (
        f"; WARNING: it was trained for other weights ({str(trained_for)[:12]}, these are {config.target_sha[:12]}), "
        "so less of what it drafts may be accepted"
    )
