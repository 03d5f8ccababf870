"""What several ``redraft bench`` commands check of their options."""

from __future__ import annotations

import typer

from redraft.server.engine.types import RedraftError
from redraft.server.options import on_command_line

ENGINE_OPTIONS = (
    "target",
    "draft",
    "draft_ngram",
    "draft_branch",
    "draft_own_tokens",
    "speculation",
    "max_nodes",
    "dtype",
    "device",
    "max_num_seqs",
)
SERVER_OPTIONS = ("plain_url", "model", "api_key")


def check_options(context: typer.Context, url: str | None) -> None:
    """Refuse options that would be ignored."""
    given = [name for name, value in context.params.items() if on_command_line(context, name) and value is not None]
    idle = [name for name in given if name in (ENGINE_OPTIONS if url else SERVER_OPTIONS)]
    if idle:
        option = "--" + idle[0].replace("_", "-")
        reason = "says how this process decodes, but --url measures a server" if url else "needs --url"
        raise RedraftError(f"{option} {reason}; leave one of them out" if url else f"{option} {reason}")
