"""What ``--draft`` may name, and the folder it stands for: a trained draft's folder or hub id, ``ngram`` or ``none``.

Runs before the engine's process starts and loads no tensors.
"""

from __future__ import annotations

import json
from pathlib import Path

from redraft.drafts.dflash_config import DraftError, from_json
from redraft.drafts.shipped import shipped_for
from redraft.server.engine.progress import say
from redraft.server.engine.target.hub import fetch_snapshot
from redraft.server.engine.target.resolve import HUB_ID, ResolvedTarget
from redraft.server.engine.types import RedraftError

PUBLISHED = {
    "Qwen/Qwen3-4B": "z-lab/Qwen3-4B-DFlash-b16",
    "Qwen/Qwen3-8B": "z-lab/Qwen3-8B-DFlash-b16",
}
"""Drafts on the hub by the hub id of their target."""


def resolve_draft(draft: str | None, target: ResolvedTarget, *, offline: bool = False) -> str | None:
    """``ngram``, ``none``, or the folder of a trained draft on this machine; None for n-gram lookup as the last choice.

    Raises ``RedraftError`` if ``draft`` names nothing that serves.
    """
    if draft in ("ngram", "none"):
        return draft
    if draft is None:
        return _default(target, offline)
    try:
        folder = Path(draft).expanduser()
        is_folder, exists = bool(draft) and folder.is_dir(), folder.exists()
    except (OSError, RuntimeError) as error:  # a name too long, an unknown user
        raise RedraftError(f"--draft {draft[:80]}: {error}") from None
    if is_folder:
        return str(folder.resolve())
    if not exists and HUB_ID.fullmatch(draft):
        return str(fetch_snapshot(draft, None, offline, _check_config))
    raise RedraftError(
        f"there is no folder {draft}; --draft takes a folder with a trained draft, a hub id (owner/name), ngram or none"
    )


def _default(target: ResolvedTarget, offline: bool) -> str | None:
    """The shipped draft, then a published one; a hub that cannot be reached is no reason not to serve."""
    try:
        shipped = shipped_for(target.sha)
    except DraftError as error:
        raise RedraftError(str(error)) from None
    if shipped is not None:
        return str(shipped)
    known = PUBLISHED.get(target.name)
    if known is None:
        return None
    try:
        return str(fetch_snapshot(known, None, offline, _check_config))
    except RedraftError as error:
        say(f"the published draft {known} cannot be had ({error}); serving with n-gram lookup instead")
        return None


def _check_config(path: Path) -> None:
    """Refuse what is not a draft that can be served, before its weights are fetched."""
    try:
        raw = json.loads(path.read_text())
        from_json(raw if isinstance(raw, dict) else {}, str(path))
    except (ValueError, DraftError) as error:
        raise RedraftError(str(error)) from None
