"""A file of rows that grows line by line, and that a killed, interrupted or starved run leaves fit to go on with.

Whole lines only: each is written at once, a piece of one is taken back, and what a killed run left of its last line is
cut off when the file is opened again.  Nothing is cut or added before every line was found to be the command's own.
"""

from __future__ import annotations

import errno
import fcntl
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Generic

import msgspec

from redraft.server.data.rows import R, dump, load
from redraft.server.engine.progress import say
from redraft.server.engine.types import RedraftError

OPENING = b'{"source":'
"""How every line that this project writes begins."""
ELSEWHERE = "continue it with the command that began it, or give another --out"


class RowFile(Generic[R]):
    """Rows on disk; made by ``open_rows``."""

    def __init__(self, path: Path, stream: FileIO, end: int) -> None:
        """``end``: bytes of the whole lines."""
        self.path = path
        self._stream = stream
        self._end = end

    def append(self, row: R) -> None:
        """Add a line; raises ``RedraftError``, with the file as it was, when the disk is full or cannot be written."""
        line = dump(row)
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._stream.write(rest) :]
        except BaseException as error:
            with suppress(OSError):
                self._stream.truncate(self._end)
            if isinstance(error, OSError):
                raise unwritable(self.path, error) from error
            raise
        self._end += len(line)


@contextmanager
def open_rows(path: Path, kind: type[R], take: Callable[[str, R], None]) -> Iterator[RowFile[R]]:
    """Open ``path`` to append to, made where it is absent, and hold it against other processes.

    ``take`` gets each row that is there with its place, and refuses by a ``RedraftError`` what is not the command's.
    """
    try:
        stream = FileIO(path, "a+")
    except OSError as error:
        raise unwritable(path, error) from error
    with stream:
        if not stat.S_ISREG(path.stat().st_mode):
            raise RedraftError(f"{path} is not a file; --out takes one that can be read again to go on with")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RedraftError(f"another process is writing {path}; wait for it, or give another --out") from error
        end = _take_rows(path, kind, take)
        yield RowFile(path, stream, _mend(path, stream, end))


def _take_rows(path: Path, kind: type[R], take: Callable[[str, R], None]) -> int:
    """Hand every row of ``path`` to ``take``; returns where the whole rows end."""
    end = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{path}:{number}"
            if not line.endswith(b"\n") and not _is_whole(line):
                if not line.startswith(OPENING[: len(line)]):
                    raise RedraftError(f"{place}: not a row of this command; {ELSEWHERE}")
                break
            if line.strip():
                take(place, load(line, kind, place, f"not a row of this command; {ELSEWHERE}"))
            end += len(line)
    return end


def _is_whole(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _mend(path: Path, stream: FileIO, end: int) -> int:
    """Cut a torn last line off, or end a whole one that lacks its line break; returns the file's length."""
    length = stream.seek(0, 2)
    try:
        if length > end:
            stream.truncate(end)
            say(f"{path}: its last line is torn and was cut off ({length - end} bytes); it is made again")
        if end:
            stream.seek(end - 1)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
                end += 1
    except OSError as error:
        raise unwritable(path, error) from error
    return end


def unwritable(path: Path, error: OSError) -> RedraftError:
    """What to do about ``error`` of writing ``path``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RedraftError(
            f"the disk of {path} is full; what was written is whole: make room and run the same command again"
        )
    if error.errno == errno.ENOENT:
        return RedraftError(f"there is no folder {path.parent}; make it, or give another --out")
    return RedraftError(f"cannot write {path} ({error.strerror or error}); give another --out, or mend the cause")
