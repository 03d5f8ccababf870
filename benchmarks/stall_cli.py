"""``redraft bench stall``: its options."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from redraft.server.options import DEFAULT_TARGET, Device, Draft, Dtype, Target


def stall(
    streams: Annotated[str, typer.Option(help="Numbers of streams to decode meanwhile, like 1,4,8.")] = "1,4,8",
    tokens: Annotated[int, typer.Option(min=1, help="Length of the prompt that comes in.")] = 4000,
    prefix: Annotated[int, typer.Option(min=2, help="Length of the prompt that comes twice.")] = 1000,
    target: Target = DEFAULT_TARGET,
    draft: Draft = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the line of JSON to this file too.")] = None,
) -> None:
    """Gaps between tokens of running streams while a long prompt is read, and what a reused prefix saves.

    The last line on stdout is JSON.
    """
    from redraft.benchmarks.stall import run
    from redraft.server.engine.configure import configure

    try:
        numbers = [int(part) for part in streams.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(f"{streams!r} is not a list of numbers like 1,4,8", param_hint="--streams")
    config = replace(configure(target, draft), dtype=dtype, device=device, max_num_seqs=max(numbers) + 1)
    run(config, numbers, tokens, prefix, json_file, ["redraft", *sys.argv[1:]])
