"""The ``redraft`` command.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once; what a command does is in
launch.py, generate.py and the benchmarks.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import replace
from typing import Annotated

import typer

from redraft.server import train_cli
from redraft.server.data import cli as data_cli
from redraft.server.http_options import (
    ApiKey,
    ApiKeyFile,
    CorsOrigin,
    DrainSeconds,
    Guarded,
    Host,
    MaxQueue,
    Page,
    Port,
    RequestTimeout,
    ServedName,
)
from redraft.server.observe_options import LogForm, LogPrompts, MetricsNames, OtlpEndpoint, PricePerHour
from redraft.server.options import (
    DEFAULT_TARGET,
    BatchedTokens,
    CudaGraphs,
    Device,
    Draft,
    DraftNgram,
    Dtype,
    Memory,
    ModelLen,
    Nodes,
    NumSeqs,
    Offline,
    OwnTokens,
    PrefixCaching,
    ReasoningParser,
    Revision,
    Speculation,
    Target,
    ToolParser,
    engine_config,
    finite,
    mendable_errors,
)

app = typer.Typer(
    help="Lossless speculative decoding: an OpenAI-compatible server whose draft does not change what it says.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: quicker, and long names of variables stay whole
)
app.add_typer(data_cli.app, name="data")
app.add_typer(train_cli.app, name="train")


@app.command()
def serve(
    context: typer.Context,
    target: Target = DEFAULT_TARGET,
    draft: Draft = None,
    draft_ngram: DraftNgram = True,
    draft_own_tokens: OwnTokens = 0,
    revision: Revision = None,
    offline: Offline = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    gpu_memory_utilization: Memory = 0.9,
    max_model_len: ModelLen = None,
    max_num_seqs: NumSeqs = 8,
    max_num_batched_tokens: BatchedTokens = None,
    prefix_caching: PrefixCaching = True,
    cuda_graphs: CudaGraphs = True,
    speculation: Speculation = "auto",
    max_nodes: Nodes = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    served_model_name: ServedName = None,
    page: Page = True,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    guard: Guarded = "none",
    cors_origin: CorsOrigin = None,
    max_queue: MaxQueue = 256,
    request_timeout: RequestTimeout = None,
    drain_seconds: DrainSeconds = 25.0,
    tool_parser: ToolParser = "auto",
    reasoning_parser: ReasoningParser = "auto",
    metrics_names: MetricsNames = "both",
    price_per_hour: PricePerHour = None,
    log_format: LogForm = None,
    log_prompts: LogPrompts = False,
    otlp_endpoint: OtlpEndpoint = None,
) -> None:
    """Serve a target over HTTP with OpenAI's API."""
    with mendable_errors():
        from redraft.server import launch

        launch.check_address(host, port)
        settings = launch.server_settings(context.params)
        config = engine_config(context)
        launch.serve(config, replace(settings, served_model_name=served_model_name or config.target_name))


@app.command()
def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What to say to the model.")],
    target: Target = DEFAULT_TARGET,
    draft: Draft = None,
    draft_ngram: DraftNgram = True,
    draft_own_tokens: OwnTokens = 0,
    revision: Revision = None,
    offline: Offline = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    gpu_memory_utilization: Memory = 0.9,
    max_model_len: ModelLen = None,
    speculation: Speculation = "auto",
    max_nodes: Nodes = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, callback=finite, help="0 always takes the likeliest token.")
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(min=1e-6, max=1.0, callback=finite, help="Sample within this mass of the likeliest tokens."),
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed, same text, whatever the draft.")] = 0,
    system: Annotated[str | None, typer.Option(help="System message; by default the chat template's own.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as is, without the chat template.")] = False,
) -> None:
    """Stream one answer to the terminal, then tell how fast it came and what the draft was worth."""
    with mendable_errors():
        from redraft.server import generate as command
        from redraft.server.engine.types import SamplingParams

        config = engine_config(context, max_num_seqs=1)
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


if __name__ == "__main__":  # launchers take a module
    main()
