"""What any draft that can be served is: the configs of all architectures, and which one a ``config.json`` is of.

Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redraft.drafts import dflash_config, eagle3_config
from redraft.drafts.dflash_config import DFlashConfig, DraftError
from redraft.drafts.eagle3_config import Eagle3Config

DraftConfig = DFlashConfig | Eagle3Config


def from_json(raw: dict[str, Any], where: str) -> DraftConfig:
    """Read a checkpoint's ``config.json``; ``where`` names it in errors."""
    readers: dict[str, Callable[[dict[str, Any], str], DraftConfig]] = {
        dflash_config.ARCHITECTURE: dflash_config.from_json,
        eagle3_config.ARCHITECTURE: eagle3_config.from_json,
    }
    names = raw.get("architectures") or []
    try:
        for name, read in readers.items():
            if name in names:
                return read(raw, where)
    except (AttributeError, TypeError, ValueError) as error:
        raise DraftError(f"{where}: a value is not of the kind it should be ({error})") from None
    raise DraftError(
        f"{where}: architecture {names} is not a draft this version serves; it serves {' and '.join(readers)}"
    )


def to_json(config: DraftConfig) -> dict[str, Any]:
    """``config.json`` of a checkpoint."""
    return eagle3_config.to_json(config) if isinstance(config, Eagle3Config) else dflash_config.to_json(config)
