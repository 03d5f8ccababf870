"""The cache folder: what is fetched or converted once, built under a lock and published by one rename.

A folder that exists under its final name is complete; whatever a killed build left under its scratch name belongs to
nobody, because the lock died with the process, and the next build removes it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from redraft.server.engine.progress import say
from redraft.server.engine.types import RedraftError


def cache_root() -> Path:
    """``$REDRAFT_CACHE``, by default ``~/.cache/redraft``."""
    chosen = os.environ.get("REDRAFT_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".cache" / "redraft"


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return ``folder``, after ``build(scratch)`` has filled it if it was absent.

    Safe against other processes that want the same folder and against being killed at any moment.
    Raises ``RedraftError`` when the disk is full or the cache cannot be written.
    """
    if folder.is_dir():
        return folder
    with _writing(folder.parent), _locked(folder):
        if not folder.is_dir():
            scratch = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            try:
                build(scratch)
                scratch.replace(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"Another process is preparing {folder.name}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _writing(parent: Path) -> Iterator[None]:
    """Turn the two failures a user can mend into messages."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(parent).free >> 20
            raise RedraftError(
                f"the disk of {parent} is full ({free} MiB free); make room or set REDRAFT_CACHE to another folder"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise RedraftError(f"cannot write to {parent}; set REDRAFT_CACHE to a folder of yours") from error
        raise
