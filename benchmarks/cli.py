"""``redraft bench``."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from redraft.benchmarks.cost_cli import cost
from redraft.benchmarks.load_cli import load
from redraft.benchmarks.options import check_options
from redraft.benchmarks.overhead_cli import overhead
from redraft.benchmarks.simulate_cli import simulate
from redraft.benchmarks.soak_cli import soak
from redraft.benchmarks.stall_cli import stall
from redraft.server.engine.types import RedraftError
from redraft.server.options import (
    DEFAULT_TARGET,
    Device,
    Draft,
    DraftNgram,
    Dtype,
    Nodes,
    NumSeqs,
    OwnTokens,
    Speculation,
    Target,
    engine_config,
    finite,
)

app = typer.Typer(help="Measure.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def bench() -> None:
    """Measure Redraft, and other servers by the same client."""


app.command()(load)
app.command()(simulate)
app.command()(cost)
app.command()(stall)
app.command()(soak)
app.command()(overhead)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def headline(context: typer.Context) -> None:
    """Train EAGLE-3, DFlash and Draft-OPD drafts with equal operations, and report (redraft bench headline --help)."""
    from redraft.benchmarks.headline.__main__ import main

    main(context.args, ("redraft", "bench", "headline"))


@app.command()
def speed(
    context: typer.Context,
    prompts: Annotated[
        list[Path], typer.Option(help='File of prompts, one {"turns": [...]} a line; repeat it for several.')
    ],
    limit: Annotated[int | None, typer.Option(help="Take only the first prompts of each file.")] = None,
    multi_turn: Annotated[
        bool, typer.Option("--multi-turn", help="Ask all turns, each after the model's own answers; else the first.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the first prompt; the next one's is one higher.")] = 0,
    repeat: Annotated[int, typer.Option(min=1, help="Passes over all prompts; speeds are medians over passes.")] = 1,
    target: Target = DEFAULT_TARGET,
    draft: Draft = None,
    draft_ngram: DraftNgram = True,
    draft_own_tokens: OwnTokens = 0,
    draft_branch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens a trained draft's tree considers at each place; 1 drafts chains. [default: by the draft]",
        ),
    ] = None,
    speculation: Speculation = "auto",
    max_nodes: Nodes = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    url: Annotated[
        str | None, typer.Option(help="Measure this OpenAI server instead of an engine in this process.")
    ] = None,
    plain_url: Annotated[
        str | None, typer.Option(help="Server that decodes plainly, to compare --url with; else nothing is compared.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to ask the servers for; else their first one.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="REDRAFT_API_KEY", help="Key for the servers.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the line of JSON to this file too.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="Folder whose speed.jsonl gets the line of JSON appended.")
    ] = None,
) -> None:
    """Compare plain with speculative decoding, one request at a time, prompt by prompt in turn.

    Tokens per second: all tokens generated, divided by all seconds from request to last token, prefill included.

    The last line on stdout is JSON.
    """
    from redraft.benchmarks.prompts import read_prompts
    from redraft.benchmarks.speed import INTERRUPTED, Settings, Sinks, engine_contest, run, server_contest

    if not math.isfinite(temperature):
        raise RedraftError(f"--temperature {temperature} is not a number to divide by; give 0 for greedy, or 0.8, say")
    check_options(context, url)
    files = [read_prompts(path, limit, multi_turn=multi_turn) for path in prompts]
    settings = Settings(max_tokens, temperature, seed, repeat, limit, multi_turn)
    sinks = Sinks(json_file, results)
    sinks.prepare()
    if url:
        contest = server_contest(url, plain_url, model, api_key)
    else:
        contest = engine_contest(engine_config(context, max_num_seqs=1))
    try:
        with contest as opened:
            run(opened, files, settings, sinks, ["redraft", *sys.argv[1:]])
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


@app.command()
def acceptance(
    prompts: Annotated[
        list[Path], typer.Option(help='File of prompts, one {"turns": [...]} a line; repeat it for several.')
    ],
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first prompts of each file.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, callback=finite, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of all requests.")] = 0,
    target: Target = DEFAULT_TARGET,
    draft: Draft = None,
    max_nodes: Nodes = None,
    max_num_seqs: NumSeqs = 8,
    dtype: Dtype = "auto",
    device: Device = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the line of JSON to this file too.")] = None,
) -> None:
    """Acceptance length per prompt file: n-gram lookup, the draft's chains, its trees, and both in one tree.

    The last line on stdout is JSON.
    """
    from redraft.benchmarks.acceptance import acceptance as measure
    from redraft.benchmarks.prompts import read_prompts
    from redraft.server.engine.configure import configure
    from redraft.server.engine.types import SamplingParams

    files = [read_prompts(path, limit, multi_turn=False) for path in prompts]
    config = replace(
        configure(target, draft), dtype=dtype, device=device, max_nodes=max_nodes, max_num_seqs=max_num_seqs
    )
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    measure(config, files, params, json_file, ["redraft", *sys.argv[1:]])
