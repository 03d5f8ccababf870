"""``redraft data``; what its commands run is loaded when they run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from redraft.server.data.sets import SETS
from redraft.server.engine.progress import say
from redraft.server.options import (
    DEFAULT_TARGET,
    BatchedTokens,
    Device,
    Draft,
    DraftNgram,
    Dtype,
    Memory,
    ModelLen,
    Offline,
    Revision,
    Target,
    engine_config,
    finite,
    mendable_errors,
)

INTERRUPTED = 130

app = typer.Typer(
    name="data",
    help="Make training data for drafts: prompts, and what the target answers to them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _temperatures(values: list[float]) -> list[float]:
    if len(set(map(finite, values))) < len(values):
        raise typer.BadParameter("the same temperature is given twice; --samples asks for several answers.")
    return values


Out = Annotated[
    Path,
    typer.Option(help="File to write, one JSON object a line. If it is there, the command goes on where it ended."),
]
NumSeqs = Annotated[
    int,
    typer.Option(
        envvar="REDRAFT_MAX_NUM_SEQS", min=1, help="Prompts decoded at once. More is faster until memory is full."
    ),
]
Seed = Annotated[int, typer.Option(help="Same command, same seed, same rows, interrupted or not.")]


@contextmanager
def _ending(interrupted: str) -> Iterator[None]:
    """Errors that can be mended, and Ctrl-C, become a line and an exit code."""
    with mendable_errors():
        try:
            yield
        except KeyboardInterrupt:
            say(f"Interrupted. {interrupted}")
            raise typer.Exit(INTERRUPTED) from None


@app.command()
def prompts(
    context: typer.Context,
    out: Out,
    count: Annotated[int, typer.Option(min=1, help="Prompts that the file is to hold in the end.")],
    temperature: Annotated[
        float, typer.Option(min=0.0, callback=finite, help="Above 0: higher is more varied, and more often nonsense.")
    ] = 1.0,
    seed: Seed = 0,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of a prompt; one that has not ended by then is dropped.")
    ] = 256,
    target: Target = DEFAULT_TARGET,
    draft: Draft = None,
    draft_ngram: DraftNgram = True,
    revision: Revision = None,
    offline: Offline = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    gpu_memory_utilization: Memory = 0.9,
    max_model_len: ModelLen = None,
    max_num_seqs: NumSeqs = 16,
    max_num_batched_tokens: BatchedTokens = None,
) -> None:
    """Let the target write prompts itself: it is shown the opening of a user's turn and goes on.

    Empty, truncated, garbled and repeated ones are dropped and counted. The file is one that `redraft data respond`
    and `redraft bench speed --prompts` take.

    Example: redraft data prompts --count 2000 --out prompts.jsonl
    """
    with _ending(f"What {out} holds is whole; run the same command again to go on."):
        from redraft.server.data.prompts import Settings, write_prompts

        settings = Settings(count, temperature, seed, max_tokens)
        write_prompts(engine_config(context), out, settings)


@app.command()
def respond(
    context: typer.Context,
    files: Annotated[
        list[Path], typer.Argument(metavar="PROMPTS", help='Files of prompts, one {"turns": ["..."]} a line.')
    ],
    out: Out,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 512,
    temperature: Annotated[
        list[float],
        typer.Option(
            min=0.0,
            callback=_temperatures,
            help="0 always takes the likeliest token; repeat it for answers at several.",
        ),
    ] = [0.0],  # noqa: B006 (Typer makes its own list of it)
    samples: Annotated[
        int, typer.Option(min=1, help="Answers to each prompt at each temperature above 0; at 0 there is one.")
    ] = 1,
    seed: Seed = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first prompts of each file.")] = None,
    target: Target = DEFAULT_TARGET,
    draft: Draft = None,
    draft_ngram: DraftNgram = True,
    revision: Revision = None,
    offline: Offline = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    gpu_memory_utilization: Memory = 0.9,
    max_model_len: ModelLen = None,
    max_num_seqs: NumSeqs = 16,
    max_num_batched_tokens: BatchedTokens = None,
) -> None:
    """Let the target answer prompt files (first turns); rows keep the exact token ids, seed and temperature.

    Rows are written as they finish. After Ctrl-C, a crash or a full disk the same command goes on with what is
    missing, and the rows are those of a run that was never interrupted. More prompts, samples or temperatures may be
    asked for in the same file; what is there already must be what the command asks for.

    Example: redraft data respond prompts.jsonl --out responses.jsonl --temperature 0 --temperature 0.8
    """
    with _ending(f"What {out} holds is whole; run the same command again to go on."):
        from redraft.server.data.prompt_files import read_prompts

        lines = read_prompts(files, limit)
        # the engine comes with it: not before the files are known to be sound
        from redraft.server.data.respond import Settings
        from redraft.server.data.respond import respond as answer

        settings = Settings(max_tokens, tuple(temperature), seed, samples)
        answer(engine_config(context), lines, out, settings)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help=f"Which set: {', '.join(SETS)}.")],
    out: Annotated[Path, typer.Option(help="Prompt file to write; it must not be there yet.")],
    split: Annotated[str | None, typer.Option(help="Split of the set, e.g. test; by default its first one.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first prompts.")] = None,
) -> None:
    """Fetch a public set of prompts from the Hugging Face hub.

    Sets stored as parquet (gsm8k, humaneval, ultrachat) need pyarrow. Each set has its own licence.

    Example: redraft data fetch gsm8k --out gsm8k.jsonl --limit 2000
    """
    with _ending("Nothing was written."):
        from redraft.server.data.fetch import fetch as fetch_set

        fetch_set(name, out, split, limit)
