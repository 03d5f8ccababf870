"""``redraft bench simulate``: its options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    on_command_line,
)

if TYPE_CHECKING:
    from redraft.benchmarks.simulate import Inputs

CONCURRENCY = "1,4,16,64"
MAX_REPLICAS = 1024
MEASURED_SEQS = 64
"""Most slots of an engine that is only measured; what more requests cost is extrapolated."""
OF_PROMPTS = ("limit", "max_tokens", "temperature", "record", "validate")
OF_AN_ENGINE = ("target", "draft", "draft_ngram", "dtype", "device")


def simulate(
    context: typer.Context,
    costs: Annotated[
        Path | None,
        typer.Option(
            help="Costs of passes: a table as in ~/.cache/redraft/costs, or a simulation's JSON. Else measured."
        ),
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="Acceptance as --record wrote it.")] = None,
    rates: Annotated[
        str | None, typer.Option(help="Acceptance instead: how often the first, second ... drafted token is right.")
    ] = None,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(help='Acceptance instead: recorded now, on prompts, one {"turns": [...]} a line; repeatable.'),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first prompts of each file.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a recorded answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, callback=finite, help="Of recorded answers.")] = 0.0,
    record: Annotated[Path | None, typer.Option(help="Write what was recorded of --prompts here.")] = None,
    validate: Annotated[
        bool, typer.Option("--validate", help="Also run --prompts for real at each concurrency, and compare.")
    ] = False,
    concurrency: Annotated[
        str | None, typer.Option(help=f"Closed loops: users of each level. By default {CONCURRENCY}.")
    ] = None,
    rate: Annotated[str | None, typer.Option(help="Open loops instead: requests per second of each level.")] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Requests of a level; by default as with bench load.")
    ] = None,
    prompt_tokens: Annotated[
        str | None, typer.Option(help="128, or lognormal:MEDIAN:SIGMA. By default the trace's; with --rates 128.")
    ] = None,
    output_tokens: Annotated[
        str | None, typer.Option(help="The same of outputs. By default the trace's; with --rates 128.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of lengths, arrivals and what is drawn.")] = 0,
    replicas: Annotated[int, typer.Option(min=1, max=MAX_REPLICAS, help="Engines behind the router.")] = 1,
    router: Annotated[str, typer.Option(help="round-robin or least-loaded.")] = "round-robin",
    max_num_seqs: Annotated[
        int | None, typer.Option(min=1, help="Requests a replica decodes at once; by default its share of the users.")
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(min=10, help="Most rows in one pass; by default the most that were measured.")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=2, help="Longest prompt and output together; by default the longest there is.")
    ] = None,
    pages: Annotated[
        int | None, typer.Option(min=1, help="Pages of KV of a replica; by default enough for every request at once.")
    ] = None,
    speculation: Speculation = "auto",
    max_nodes: Nodes = None,
    lag: Annotated[
        int | None,
        typer.Option(min=0, max=1, help="Rounds that the host is behind: 0 as on a CPU (default), 1 as on a GPU."),
    ] = None,
    host_seconds: Annotated[
        float, typer.Option(min=0.0, callback=finite, help="What a step takes beside its pass, in seconds.")
    ] = 0.0,
    target: Target = DEFAULT_TARGET,
    draft: Draft = None,
    draft_ngram: DraftNgram = True,
    dtype: Dtype = "auto",
    device: Device = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the line of JSON to this file too.")] = None,
) -> None:
    """Plain against speculative decoding under load, simulated: large batches, and fleets of --replicas.

    The engine's own scheduler and pacer decide; what passes cost and what drafts are worth is measured or given.

    The last line on stdout is JSON.
    """
    from redraft.benchmarks.load_plan import closed_levels, open_levels, read_concurrency, read_rates
    from redraft.benchmarks.simulate import Study, prepare, run
    from redraft.benchmarks.simulate_fleet import ROUTERS
    from redraft.benchmarks.simulate_lengths import Lengths, read_lengths
    from redraft.benchmarks.simulate_trace import Trace

    if router not in ROUTERS:
        raise RedraftError(f"--router {router[:80]!r} must be {' or '.join(ROUTERS)}")
    if concurrency is not None and rate is not None:
        raise RedraftError("--concurrency makes closed loops and --rate open ones; give one of them")
    check(context)
    prepare(json_file, record)
    users = read_concurrency(concurrency or CONCURRENCY) if rate is None else ()
    arriving = read_rates(rate) if rate is not None else ()
    usual = Lengths(128) if rates is not None else None
    inputs, more = _inputs(context, users)
    texts = len(inputs.source.texts) if isinstance(inputs.source, Trace) else 1
    study = Study(
        levels=(*closed_levels(users, texts, requests), *open_levels(arriving, texts, requests)),
        prompt_tokens=read_lengths("--prompt-tokens", prompt_tokens) if prompt_tokens else usual,
        output_tokens=read_lengths("--output-tokens", output_tokens) if output_tokens else usual,
        seed=seed,
        replicas=replicas,
        router=router,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        max_nodes=max_nodes,
        pages=pages,
        speculation=speculation,
        lag=inputs.lag if lag is None else lag,
        host_seconds=host_seconds,
    )
    run(study, inputs, json_file, ["redraft", *sys.argv[1:]], more)


def check(context: typer.Context) -> None:
    """Refuse what is missing, contradicts itself or would be ignored."""
    given = context.params
    sources = [name for name in ("trace", "rates", "prompts") if given[name]]
    if len(sources) != 1:
        raise RedraftError(
            "acceptance comes from one of --trace FILE, --rates 0.7,0.5,0.3 and --prompts FILE; "
            + (f"leave out --{sources[-1]}" if sources else "give one of them")
        )
    if not given["prompts"]:
        _refuse(context, OF_PROMPTS, "needs --prompts")
        if given["costs"]:
            _refuse(
                context, OF_AN_ENGINE, "says what to measure, but --costs is measured already; leave one of them out"
            )
    if given["validate"] and given["rate"] is not None:
        raise RedraftError("--validate runs closed loops; give --concurrency instead of --rate")


def _refuse(context: typer.Context, names: Sequence[str], why: str) -> None:
    for name in names:
        if on_command_line(context, name):
            raise RedraftError(f"--{name.replace('_', '-')} {why}")


def _inputs(context: typer.Context, users: Sequence[int]) -> tuple[Inputs, dict[str, Any]]:
    """Costs and acceptance as asked for, and what else there is to say in the JSON."""
    from redraft.benchmarks.simulate import Inputs, read_chances, read_costs
    from redraft.benchmarks.simulate_trace import read_trace

    given = context.params
    table = read_costs(given["costs"]) if given["costs"] else None
    source = read_trace(given["trace"]) if given["trace"] else None
    chances = read_chances(given["rates"]) if given["rates"] else None
    if table is not None and not given["prompts"]:
        found = source or chances
        assert found is not None
        return Inputs(
            table, found, {"costs": str(given["costs"]), "acceptance": str(given["trace"] or given["rates"])}
        ), {}

    from redraft.benchmarks.simulate_engine import Wanted, from_engine
    from redraft.server.engine.types import SamplingParams

    most = max(users, default=1)
    seqs = given["max_num_seqs"] or (most if given["validate"] else min(most, MEASURED_SEQS))
    # a prompt is asked again and again: nothing may be found computed
    config = engine_config(context, max_num_seqs=seqs, prefix_caching=False, kv_pages=given["pages"])
    params = SamplingParams(given["max_tokens"], temperature=given["temperature"], seed=given["seed"])
    wanted = Wanted(
        files=tuple(given["prompts"] or ()),
        limit=given["limit"],
        params=params,
        record=given["record"],
        users=tuple(users) if given["validate"] else (),
        host_seconds=given["host_seconds"],
    )
    return from_engine(config, wanted, table, source or chances)
