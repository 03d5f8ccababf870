"""Names for weights and files by content: computed once, then remembered beside sizes and times of the files.

The digest of a target covers names, types, shapes and bytes of its tensors in the order of their names, so the same
weights have the same digest whether they lie in one file or in shards.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redraft.server.engine.progress import progress
from redraft.server.engine.target.cache import cache_root
from redraft.server.engine.types import RedraftError

BLOCK = 8 << 20
INDEX = "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model in ``folder``, sorted; empty when it has none.

    An index decides where there is one: folders from the hub may hold the same weights twice, under other names.
    """
    index = folder / INDEX
    if index.is_file():
        return sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
    single = folder / "model.safetensors"
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def weights_digest(folder: Path) -> str:
    """SHA-256 of the weights in ``folder``, in hexadecimal."""
    files = weight_files(folder)
    return _remembered(files, lambda: _digest_tensors(files))


def file_digest(path: Path) -> str:
    """SHA-256 of one file, in hexadecimal."""
    return _remembered([path], lambda: _digest_file(path))


def _remembered(files: list[Path], compute: Callable[[], str]) -> str:
    """``compute()``, or what it gave for the same files with the same sizes and times before."""
    state = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    key = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    record = cache_root() / "digests" / key
    if record.is_file() and len(known := record.read_text()) == 64:
        return known
    digest = compute()
    # a cache that cannot be written costs the time at each start, nothing else
    with contextlib.suppress(OSError):
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(digest)
    return digest


def _digest_file(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as stream, progress(f"Hashing {path.name}", path.stat().st_size) as advance:
        while block := stream.read(BLOCK):
            total.update(block)
            advance(len(block))
    return total.hexdigest()


def _digest_tensors(files: list[Path]) -> str:
    entries: list[tuple[str, dict[str, Any], Path, int]] = []
    for path in files:
        header, start = _header(path)
        entries += [(name, entry, path, start) for name, entry in header.items() if name != "__metadata__"]
    entries.sort(key=lambda entry: entry[0])
    total = hashlib.sha256()
    size = sum(end - begin for begin, end in (entry["data_offsets"] for _, entry, _, _ in entries))
    with progress("Hashing the weights", size) as advance:
        for name, entry, path, start in entries:
            total.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
            begin, end = entry["data_offsets"]
            with path.open("rb") as stream:
                stream.seek(start + begin)
                left = end - begin
                while left:
                    block = stream.read(min(BLOCK, left))
                    if not block:
                        raise RedraftError(f"{path} ends early; fetch it again")
                    total.update(block)
                    advance(len(block))
                    left -= len(block)
    return total.hexdigest()


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's JSON header and where its data begin: 8 bytes of length, little-endian, then the JSON."""
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > path.stat().st_size:
            raise RedraftError(f"{path} is not a whole safetensors file; fetch it again")
        header: dict[str, Any] = json.loads(stream.read(size))
    return header, 8 + size
