"""From what a command was given to the engine's config: target and draft found, fetched or converted."""

from __future__ import annotations

from redraft.server.engine.config import EngineConfig
from redraft.server.engine.draft_resolve import resolve_draft
from redraft.server.engine.target.resolve import resolve_target


def configure(target: str, draft: str | None, *, revision: str | None = None, offline: bool = False) -> EngineConfig:
    """The config of ``--target`` and ``--draft``; everything else is at its default, for ``dataclasses.replace``.

    Raises ``RedraftError`` for what cannot be had.
    """
    resolved = resolve_target(target, revision=revision, offline=offline)
    found = resolve_draft(draft, resolved, offline=offline)
    return EngineConfig(
        target=str(resolved.path),
        target_name=resolved.name,
        target_sha=resolved.sha,
        draft=found.draft,
        draft_why=found.why,
    )
