"""What training a draft took, from its card (``card.json`` in its folder)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.shipped import CARD, read_card, shipped
from redraft.server.engine.types import RedraftError

UNTRAINED = ("ngram", "none")


@dataclass(frozen=True, slots=True)
class Training:
    """Of one draft."""

    draft: str | None
    seconds: float | None
    """On the machine it was trained on; 0 for what needs no training, None where it is not known."""
    source: str
    """Where that is from, or why it is not known."""


def training(draft: Path | None, facts: Mapping[str, Any]) -> Training:
    """Of the draft in folder ``draft``, by default of the one that ``facts`` of a measurement name.

    Without a folder only the shipped drafts and those that need no training are known: whatever else was measured, its
    card is not at hand.  Raises ``RedraftError`` for a folder without a card that tells.
    """
    if draft is not None:
        return _from_card(draft, required=True)
    name = facts.get("draft")
    if not isinstance(name, str):
        return Training(None, None, "the measurement does not name its draft; give --draft FOLDER")
    # a name ends with its version
    if name.rpartition("-")[0] in UNTRAINED or name in UNTRAINED:
        return Training(name, 0.0, "needs no training")
    try:
        folders = list(shipped(str(facts.get("target_sha"))).values())
    except DraftError as error:
        raise RedraftError(str(error)) from None
    for folder in folders:
        found = _from_card(folder, required=False)
        # with n-gram lookup in the same tree the name has more behind it
        if found.draft and name.startswith((f"{found.draft}-", f"{found.draft}+")):
            return found
    return Training(name, None, f"no card of {name} is at hand; give --draft FOLDER")


def _from_card(folder: Path, *, required: bool) -> Training:
    try:
        card = read_card(folder)
    except DraftError as error:
        raise RedraftError(str(error)) from None
    name, seconds = card.get("name"), 0.0
    run: Any = card
    while isinstance(run, dict):  # the runs that a draft went on from are told in ``before``
        spent = run.get("training_seconds")
        known = isinstance(spent, int | float) and not isinstance(spent, bool) and math.isfinite(spent)
        seconds += float(spent) if known and spent is not None and spent >= 0 else math.nan
        run = run.get("before")
    if not math.isnan(seconds):
        return Training(str(name or folder.name), seconds, f"training_seconds of {folder / CARD}")
    if required:
        raise RedraftError(f"{folder / CARD} does not say how long training took (training_seconds)")
    return Training(str(name) if name else None, None, f"{folder / CARD} does not say how long training took")
