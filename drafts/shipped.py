"""The trained drafts that come with the package: ``drafts/checkpoints/<target>/<draft>``.  Torch-free."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from redraft.drafts.dflash_config import DraftError

CARD = "card.json"


def shipped(target_sha: str) -> dict[str, Path]:
    """Folders, by their names, of the shipped drafts whose cards name these weights; the default comes first."""
    root = Path(str(resources.files("redraft.drafts"))) / "checkpoints"
    found = [(read_card(card.parent), card.parent) for card in sorted(root.glob(f"*/*/{CARD}"))]
    mine = [(card, folder) for card, folder in found if card.get("target_sha") == target_sha]
    return {folder.name: folder for _, folder in sorted(mine, key=lambda one: not one[0].get("default"))}


def read_card(folder: Path) -> dict[str, Any]:
    """What a draft says of itself; empty where its folder has no card."""
    path = folder / CARD
    return read_json(path) if path.is_file() else {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file; ``DraftError`` says what else is there."""
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DraftError(f"{path}: cannot be read ({error})") from None
    if not isinstance(raw, dict):
        raise DraftError(f"{path}: not a JSON object")
    return raw
