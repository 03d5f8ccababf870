"""Errors of drafts as errors of the server: the drafts know nothing of who uses them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redraft.drafts.dflash_config import DraftError
from redraft.server.engine.types import RedraftError


@contextmanager
def as_redraft_error() -> Iterator[None]:
    """Raise a ``DraftError`` on as the ``RedraftError`` that commands show in one line."""
    try:
        yield
    except DraftError as error:
        raise RedraftError(str(error)) from None
