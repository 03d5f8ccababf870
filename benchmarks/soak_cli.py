"""``redraft bench soak``: its options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from redraft.server.options import DEFAULT_TARGET, Device, Draft, Dtype, NumSeqs, Target, finite


def soak(
    seconds: Annotated[float, typer.Option(min=5.0, callback=finite, help="How long to ask.")] = 600.0,
    connections: Annotated[int, typer.Option(min=1, max=1000, help="How many ask at once.")] = 64,
    seed: Annotated[int, typer.Option(help="Of what is asked.")] = 0,
    target: Target = DEFAULT_TARGET,
    draft: Draft = None,
    max_num_seqs: NumSeqs = 8,
    dtype: Dtype = "auto",
    device: Device = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the line of JSON to this file too.")] = None,
) -> None:
    """Serve, ask at random for long, leave at random, and check that nothing breaks, differs, grows or stays behind.

    The last line on stdout is JSON; exit code 2 when something was found.
    """
    from redraft.benchmarks.soak import run

    options = ["--target", target, "--dtype", dtype, "--device", device, "--max-num-seqs", str(max_num_seqs)]
    if draft is not None:
        options += ["--draft", draft]
    run(options, seconds, connections, seed, json_file, ["redraft", *sys.argv[1:]])
