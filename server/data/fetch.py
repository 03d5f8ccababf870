"""``redraft data fetch``: a public set from the hub as a prompt file, for those who can reach the hub."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redraft.server.data.row_file import unwritable
from redraft.server.data.rows import PromptRow, dump
from redraft.server.data.sets import SETS, PublicSet
from redraft.server.engine.progress import say
from redraft.server.engine.types import RedraftError


def fetch(name: str, out: Path, split: str | None, limit: int | None) -> None:
    """Write the first ``limit`` conversations of the set ``name`` to ``out`` (all for None), which must not exist.

    Raises ``RedraftError`` for a set or split that is not known, without network, and when the set is not laid out as
    expected; ``out`` is written whole or not at all.
    """
    public = SETS.get(name)
    if public is None:
        raise RedraftError(f"there is no set {name!r}; known are {', '.join(SETS)}")
    split = split or public.splits[0]
    if split not in public.splits:
        raise RedraftError(f"{name} has no split {split!r}; it has {', '.join(public.splits)}")
    if out.exists():
        raise RedraftError(f"{out} is there already; remove it or give another --out")
    if not out.parent.is_dir():
        raise RedraftError(f"there is no folder {out.parent}; make it, or give another --out")
    pattern = public.files.replace("{split}", split)
    if pattern.endswith(".parquet"):
        _pyarrow(name)
    files = download(public.repository, pattern)
    source = f"{name}-{split}" if len(public.splits) > 1 else name
    rows, empty = _rows(public, source, name, files, limit)
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.write_bytes(b"".join(map(dump, rows)))
        partial.replace(out)
    except OSError as error:
        raise unwritable(out, error) from error
    finally:
        partial.unlink(missing_ok=True)
    left_out = f", {empty} empty ones left out" if empty else ""
    say(f"{out}: {len(rows)} prompts of {name} ({split}){left_out}; licence: see {public.repository} on the hub")
    if split in public.held_out:
        say(f"{name} ({split}) is a set to measure on: do not train on it")


def download(repository: str, pattern: str) -> list[Path]:
    """Files of a data set on the hub whose names match ``pattern``, from the hub's own cache where they are there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = snapshot_download(repository, repo_type="dataset", allow_patterns=[pattern])
    except GatedRepoError as error:
        reason = f"{repository} is gated: accept its terms on the hub, then run `hf auth login`"
        raise RedraftError(reason) from error
    except RepositoryNotFoundError as error:
        raise RedraftError(f"the hub has no data set {repository} any more, or hides it from you") from error
    except LocalEntryNotFoundError as error:
        reason = f"{repository} is not on this machine and the hub cannot be reached; check the network"
        raise RedraftError(reason) from error
    except (HfHubHTTPError, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise RedraftError(f"{repository} cannot be fetched from the hub ({first}); check network and disk") from error
    files = sorted(Path(folder).glob(pattern))
    if not files:
        raise RedraftError(
            f"{repository} has no files {pattern}: its layout has changed, or the hub could not be reached and only "
            "others are on this machine"
        )
    return files


def _rows(
    public: PublicSet, source: str, name: str, files: list[Path], limit: int | None
) -> tuple[list[PromptRow], int]:
    """The rows of the first ``limit`` records that say anything, and how many did not."""
    rows: list[PromptRow] = []
    empty = 0
    for path in files:
        try:
            for record in _records(path, name):
                if len(rows) == limit:
                    return rows, empty
                if turns := public.turns(record):
                    rows.append(PromptRow(source=source, turns=turns))
                else:
                    empty += 1
        except (KeyError, TypeError) as error:
            raise RedraftError(f"{path.name} of {public.repository} is not laid out as expected: {error!r}") from error
        except ValueError as error:
            raise RedraftError(f"{path} cannot be read ({error}); delete it and fetch it again") from error
    if not rows:
        raise RedraftError(f"{public.repository} holds no prompts")
    return rows, empty


def _records(path: Path, name: str) -> Iterator[Any]:
    """What a file holds, one record at a time; raises ``ValueError`` if it is damaged."""
    if path.suffix == ".parquet":
        for batch in _pyarrow(name).ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    elif path.suffix == ".json":
        yield from json.loads(path.read_bytes())
    else:
        yield from (json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip())


def _pyarrow(name: str) -> Any:
    """pyarrow's reader of parquet files, which only this command needs."""
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise RedraftError(f"{name} is stored as parquet, which pyarrow reads: `pip install pyarrow`") from error
