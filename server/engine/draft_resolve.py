"""What ``--draft`` may name, and the folder it stands for: a trained draft's folder or hub id, ``ngram`` or ``none``.

Runs before the engine's process starts and loads no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from redraft.drafts.draft_config import from_json
from redraft.drafts.shipped import read_json, shipped
from redraft.server.engine.draft_errors import as_redraft_error
from redraft.server.engine.progress import say
from redraft.server.engine.target.hub import fetch_snapshot
from redraft.server.engine.target.resolve import HUB_ID, ResolvedTarget
from redraft.server.engine.types import RedraftError

PUBLISHED = {
    "Qwen/Qwen3-4B": "z-lab/Qwen3-4B-DFlash-b16",
    "Qwen/Qwen3-8B": "z-lab/Qwen3-8B-DFlash-b16",
}
"""Drafts on the hub by the hub id of their target."""
TRAIN = "'redraft train sft --help' says how to train one"


@dataclass(frozen=True, slots=True)
class ResolvedDraft:
    """A draft that lies on this machine."""

    draft: str
    """``ngram``, ``none``, or the folder of a trained draft."""
    why: str = "as asked"


def resolve_draft(draft: str | None, target: ResolvedTarget, *, offline: bool = False) -> ResolvedDraft:
    """What ``draft`` stands for, None for the default of ``target``; ``RedraftError`` if nothing serves by it."""
    if draft in ("ngram", "none"):
        return ResolvedDraft(draft)
    if draft is None:
        return _default(target, offline)
    try:
        folder = Path(draft).expanduser()
        is_folder, exists = bool(draft) and folder.is_dir(), folder.exists()
    except (OSError, RuntimeError) as error:  # a name too long, an unknown user
        raise RedraftError(f"--draft {draft[:80]}: {error}") from None
    if is_folder:
        return ResolvedDraft(str(folder.resolve()))
    with as_redraft_error():
        ours = shipped(target.sha)
    if draft in ours:
        return ResolvedDraft(str(ours[draft]), "shipped for these weights, as asked")
    if not exists and HUB_ID.fullmatch(draft):
        return ResolvedDraft(str(fetch_snapshot(draft, None, offline, _check_config)))
    raise RedraftError(
        f"there is no folder {draft}; --draft takes a folder with a trained draft, a hub id (owner/name), "
        f"{''.join(f'{name}, ' for name in ours)}ngram or none"
    )


def _default(target: ResolvedTarget, offline: bool) -> ResolvedDraft:
    """The shipped draft, then a published one; a hub that cannot be reached is no reason not to serve."""
    with as_redraft_error():
        default = default_draft(target.sha)
    known = PUBLISHED.get(target.name)
    if default.draft != "ngram" or known is None:
        return default
    try:
        return ResolvedDraft(str(fetch_snapshot(known, None, offline, _check_config)), "published for this target")
    except RedraftError as error:
        say(f"the published draft {known} cannot be had ({error}); serving with n-gram lookup instead")
        return default


def default_draft(target_sha: str) -> ResolvedDraft:
    """What serves these weights where nothing is asked for and nothing is fetched: the shipped draft, else n-gram."""
    for folder in shipped(target_sha).values():
        return ResolvedDraft(str(folder), "the shipped draft for these weights")
    return ResolvedDraft("ngram", f"because no trained draft for this target's weights is shipped or known; {TRAIN}")


def _check_config(path: Path) -> None:
    """Refuse what is not a draft that can be served, before its weights are fetched."""
    with as_redraft_error():
        from_json(read_json(path), str(path))
