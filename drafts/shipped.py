"""The trained drafts that come with the package (``drafts/checkpoints``).  Torch-free."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from redraft.drafts.dflash_config import DraftError

CARD = "card.json"


def shipped_for(target_sha: str) -> Path | None:
    """Folder of the shipped draft whose card names these weights."""
    root = Path(str(resources.files("redraft.drafts"))) / "checkpoints"
    for folder in sorted(root.glob("*/")):
        if (folder / CARD).is_file() and read_card(folder).get("target_sha") == target_sha:
            return folder
    return None


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
