"""``redraft bench load``: its options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from redraft.server.engine.types import RedraftError
from redraft.server.options import (
    DEFAULT_TARGET,
    Device,
    Draft,
    DraftNgram,
    Dtype,
    Nodes,
    Speculation,
    Target,
    engine_config,
    finite,
)

CONCURRENCY = "1,4,16"
OPEN_SEQS = 8
"""Requests decoded at once in an open loop where nothing else is asked for, as the server has it."""


def load(
    context: typer.Context,
    prompts: Annotated[
        list[Path], typer.Option(help='File of prompts, one {"turns": [...]} a line; repeat it for several.')
    ],
    limit: Annotated[int | None, typer.Option(help="Take only the first prompts of each file.")] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(help=f"Closed loops: users of each level, such as 1,2,4,8,16,32,64. By default {CONCURRENCY}."),
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Open loops instead: requests per second of each level, such as 0.5,2.")
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Requests of a level. By default every prompt once, but at least 3 a user or 20 seconds' arrivals.",
        ),
    ] = None,
    repeat: Annotated[
        int,
        typer.Option(min=1, help="Passes each way; who goes first alternates. Figures are medians over passes."),
    ] = 2,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, callback=finite, help="0 is greedy.")] = 0.0,
    seed: Annotated[
        int, typer.Option(help="Seed of a level's first request, the next one's is one higher; and of the arrivals.")
    ] = 0,
    target: Target = DEFAULT_TARGET,
    draft: Draft = None,
    draft_ngram: DraftNgram = True,
    speculation: Speculation = "auto",
    max_nodes: Nodes = None,
    max_num_seqs: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Requests decoded at once; by default the most users, and {OPEN_SEQS} in open loops."
        ),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    url: Annotated[
        str | None, typer.Option(help="Measure this OpenAI server instead of engines started for it.")
    ] = None,
    plain_url: Annotated[str | None, typer.Option(help="Server that decodes plainly, beside --url or alone.")] = None,
    model: Annotated[str | None, typer.Option(help="Model to ask the servers for; else their first one.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="REDRAFT_API_KEY", help="Key for the servers.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the line of JSON to this file too.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="Folder whose load.jsonl gets the line of JSON appended.")
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(help="Draw throughput against latency here; by default beside --json, else in --results."),
    ] = None,
) -> None:
    """Compare plain with speculative decoding under load, level by level.

    Closed loops by default: so many users, each of whom asks again as soon as the last answer is there.

    The last line on stdout is JSON.
    """
    from redraft.benchmarks.load import Settings, Sinks, run
    from redraft.benchmarks.load_contest import engines, servers
    from redraft.benchmarks.load_plan import (
        closed_levels,
        open_levels,
        read_concurrency,
        read_rates,
        round_robin,
    )
    from redraft.benchmarks.options import check_options
    from redraft.benchmarks.prompts import read_prompts
    from redraft.benchmarks.speed import INTERRUPTED

    if concurrency is not None and rate is not None:
        raise RedraftError("--concurrency makes closed loops and --rate open ones; give one of them")
    check_options(context, url or plain_url)
    users = read_concurrency(concurrency or CONCURRENCY) if rate is None else ()
    rates = read_rates(rate) if rate is not None else ()
    asked = round_robin([read_prompts(path, limit) for path in prompts])
    levels = [*closed_levels(users, len(asked), requests), *open_levels(rates, len(asked), requests)]
    sinks = Sinks(json_file, results, png)
    sinks.prepare()
    if url or plain_url:
        opening = servers(url, plain_url, model, api_key)
    else:
        seqs = max_num_seqs or max(users, default=OPEN_SEQS)
        # prompts are asked again and again: neither side may find them computed
        config = engine_config(context, max_num_seqs=seqs, prefix_caching=False)
        opening = engines(config, asked, max_tokens)
    try:
        run(
            opening,
            asked,
            levels,
            Settings(max_tokens, temperature, seed, repeat, limit),
            sinks,
            ["redraft", *sys.argv[1:]],
        )
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
