"""What ``--target`` may name, and the folder it stands for: an alias, a folder, a GGUF file or a model on the hub.

Everything that cannot be served is refused here, before anything large is fetched or loaded.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redraft.server.engine.target.cache import build_once, cache_root
from redraft.server.engine.target.convert import LAYOUT, convert_gguf
from redraft.server.engine.target.digest import file_digest, weight_files, weights_digest
from redraft.server.engine.target.embedded import SMOLLM2, embedded_folder
from redraft.server.engine.target.hub import fetch_snapshot
from redraft.server.engine.target.spec import ARCHITECTURES
from redraft.server.engine.types import RedraftError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ResolvedTarget:
    """A target that lies on this machine and has passed the checks."""

    path: Path
    """Folder with config.json, safetensors and tokenizer.json."""
    name: str
    """What clients call it unless told otherwise."""
    sha: str
    """Digest of the weights (digest.py)."""


def resolve_target(target: str, *, revision: str | None = None, offline: bool = False) -> ResolvedTarget:
    """Find, fetch or convert ``target``; ``revision`` is a branch, tag or commit on the hub.

    ``offline`` takes only what is on this machine.  Raises ``RedraftError`` with the reason and what to do.
    """
    path = Path(target).expanduser()
    on_hub = not path.exists() and target != SMOLLM2.alias and HUB_ID.fullmatch(target) and path.suffix != ".gguf"
    if revision is not None and not on_hub:
        raise RedraftError(f"--revision names a version on the hub, but {target} is not a hub id; leave it out")
    if target == SMOLLM2.alias:
        return _resolved(embedded_folder(offline=offline), target)
    if path.is_dir():
        return _resolved(path.resolve(), path.resolve().name)
    if path.suffix == ".gguf":
        return _resolved(_converted(path), path.stem)
    if path.exists():
        raise RedraftError(f"{target} is neither a folder nor a .gguf file; give the folder that holds config.json")
    if on_hub:
        return _resolved(fetch_snapshot(target, revision, offline, check_config), target)
    raise RedraftError(
        f"there is no folder {target}; --target takes a folder with config.json, a .gguf file, a hub id "
        f"(owner/name) or {SMOLLM2.alias}"
    )


def _resolved(folder: Path, name: str) -> ResolvedTarget:
    check_folder(folder)
    return ResolvedTarget(folder, name, weights_digest(folder))


def _converted(gguf: Path) -> Path:
    if not gguf.is_file():
        raise RedraftError(f"there is no file {gguf}")
    folder = cache_root() / "targets" / f"{gguf.stem}-{file_digest(gguf)[:8]}-v{LAYOUT}"
    return build_once(folder, lambda scratch: convert_gguf(gguf.resolve(), scratch))


def check_folder(folder: Path) -> None:
    """Refuse a folder that does not hold a whole, supported, unquantised model with its tokenizer."""
    config = folder / "config.json"
    if not config.is_file():
        ggufs = sorted(path.name for path in folder.glob("*.gguf"))
        hint = f"give one of its files: {', '.join(ggufs)}" if ggufs else "give the folder of a model in safetensors"
        raise RedraftError(f"{folder} holds no config.json; {hint}")
    check_config(config)
    try:
        files = weight_files(folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RedraftError(f"the weight index in {folder} is damaged; fetch the model again") from error
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise RedraftError(f"{folder} lacks {missing[0]}, which its index names; fetch the model again")
    if not files and any(folder.glob("*.bin")):
        raise RedraftError(
            f"{folder} holds pickled weights (.bin) only, which could run code when loaded; convert them to "
            "safetensors with transformers' save_pretrained"
        )
    if not files:
        raise RedraftError(f"{folder} holds no weights (*.safetensors)")
    if not (folder / "tokenizer.json").is_file():
        raise RedraftError(
            f"{folder} holds no tokenizer.json; write one with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )


def check_config(config: Path) -> None:
    """Refuse architectures and quantisations that the target decoder does not run."""
    try:
        values: Any = json.loads(config.read_text())
    except ValueError as error:
        raise RedraftError(f"{config} is not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise RedraftError(f"{config} does not hold a JSON object")
    found = values.get("architectures") or ["none"]
    if found[0] not in ARCHITECTURES:
        raise RedraftError(
            f"{config.parent} holds a model of architecture {found[0]}; supported are {', '.join(ARCHITECTURES)}"
        )
    quantization = values.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "an unnamed method")
        raise RedraftError(
            f"{config.parent} is quantised ({method}), which is not supported; take the unquantised model"
        )
