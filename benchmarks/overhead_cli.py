"""``redraft bench overhead``: its options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def overhead(
    rate: Annotated[int, typer.Option(min=1, help="Tokens per second that the engine commits, all streams.")] = 20_000,
    streams: Annotated[int, typer.Option(min=1, max=1000, help="Streams at once.")] = 64,
    per_event: Annotated[int, typer.Option(min=1, max=64, help="Tokens that come to a stream together.")] = 3,
    tokens: Annotated[int, typer.Option(min=1, max=100_000, help="Tokens of a stream.")] = 1500,
    repeat: Annotated[int, typer.Option(min=1, help="Passes; figures are medians.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the line of JSON to this file too.")] = None,
) -> None:
    """What HTTP, JSON and text cost beside an engine that computes nothing.

    The last line on stdout is JSON.
    """
    from redraft.benchmarks.overhead import Load, run

    run(Load(rate, streams, per_event, tokens), repeat, json_file, ["redraft", *sys.argv[1:]])
