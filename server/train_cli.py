"""The ``redraft train`` commands; what they do is in train.py, loaded when one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from redraft.server.engine.types import RedraftError
from redraft.server.options import (
    DEFAULT_TARGET,
    Device,
    Offline,
    Revision,
    Target,
    finite,
    mendable_errors,
    on_command_line,
)
from redraft.server.train_opd_cli import opd

app = typer.Typer(
    help="Train drafts for a target.  A run can be stopped with Ctrl-C and goes on with the same command.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


app.command()(opd)


@app.callback()
def train() -> None:
    """Train drafts for a target.  A run can be stopped with Ctrl-C and goes on with the same command."""


def _numbers(text: str, name: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers like 1,14,27", param_hint=name) from None


ARCHITECTURE = {
    "layers": "--layers",
    "block_size": "--block-size",
    "taps": "--taps",
    "tap_count": "--tap-count",
    "copied": "--copied",
    "causal": "--causal",
    "vocab": "--vocab",
    "mask_token_id": "--mask-token-id",
    "output_scale": "--output-scale",
}
"""Options that a draft to go on from has settled."""


def _check_start(context: typer.Context) -> None:
    given = [option for name, option in ARCHITECTURE.items() if on_command_line(context, name)]
    if given:
        raise RedraftError(f"{', '.join(given)}: settled by the draft of --start; leave it out")


@app.command()
def sft(
    context: typer.Context,
    data: Annotated[
        list[Path],
        typer.Option(
            help="Texts of the target, as 'redraft data respond' writes them (.jsonl or .jsonl.gz); repeat for several."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run: log.jsonl, saves, and at the end the draft.")],
    dev: Annotated[
        list[Path] | None,
        typer.Option(help="Texts set aside, on which the acceptance length is shown; none are trained on."),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a finished draft to go on from, with its architecture and vocabulary; else the target's "
            "own layers are the start."
        ),
    ] = None,
    target: Target = DEFAULT_TARGET,
    revision: Revision = None,
    offline: Offline = False,
    device: Device = "auto",
    dtype: Annotated[
        Literal["auto", "bf16", "fp32"],
        typer.Option(help="Of the target's passes; auto: bf16 on a GPU, fp32 on a CPU, where it is faster."),
    ] = "auto",
    steps: Annotated[
        int, typer.Option(min=1, help="Updates of the weights; may be changed when a run goes on.")
    ] = 1400,
    batch: Annotated[int, typer.Option(min=1, help="Texts an update.")] = 8,
    micro_batch: Annotated[int, typer.Option(min=1, help="Texts a pass; more on a GPU.")] = 1,
    anchors: Annotated[int, typer.Option(min=1, help="Most blocks drawn from a text.")] = 96,
    max_length: Annotated[int, typer.Option(min=8, help="Texts are cut to so many tokens.")] = 1024,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the draft.")] = 2,
    block_size: Annotated[int, typer.Option(min=2, help="Rows of a block: the anchor and the tokens drafted.")] = 6,
    taps: Annotated[str, typer.Option(help="Target layers whose outputs the draft reads, like 1,14,27.")] = "",
    tap_count: Annotated[int, typer.Option(min=1, help="How many, evenly spaced, where --taps names none.")] = 3,
    copied: Annotated[
        str, typer.Option(help="Target layers to start from, like 28,29; the last ones if left out.")
    ] = "",
    causal: Annotated[
        bool, typer.Option("--causal", help="A block's rows see only those before them (JetSpec).")
    ] = False,
    vocab: Annotated[
        int, typer.Option(min=0, help="Tokens the draft can propose, the most frequent ones; 0 keeps all.")
    ] = 8192,
    mask_token_id: Annotated[
        int, typer.Option(min=0, help="Token the target never uses, fed where one is drafted.")
    ] = 16,
    optimiser: Annotated[Literal["muon", "adamw"], typer.Option(help="Muon steps matrices, AdamW norms.")] = "muon",
    rate: Annotated[float, typer.Option(callback=finite, help="Peak learning rate, on AdamW's scale for both.")] = 5e-3,
    weight_decay: Annotated[float, typer.Option(min=0, callback=finite, help="Of the matrices.")] = 0.01,
    clip: Annotated[float, typer.Option(callback=finite, help="Largest norm of a gradient.")] = 1.0,
    warmup: Annotated[int, typer.Option(min=0, help="Updates in which the rate rises.")] = 20,
    decay_share: Annotated[
        float, typer.Option(min=0, max=1, callback=finite, help="Share of the updates, at the end, in which it falls.")
    ] = 0.25,
    weights: Annotated[
        Literal["dpace", "decay", "uniform"],
        typer.Option(help="Along the block: by expected acceptance (D-PACE), by exp(-(k-1)/gamma), or equal."),
    ] = "dpace",
    gamma: Annotated[float, typer.Option(callback=finite, help="Of --weights decay.")] = 3.0,
    alpha: Annotated[float, typer.Option(min=0, max=1, callback=finite, help="Smoothing of --weights dpace.")] = 0.5,
    soft: Annotated[
        float,
        typer.Option(
            min=0, max=1, callback=finite, help="Share of the KL to the target's distribution; the rest is hard labels."
        ),
    ] = 0.5,
    output_scale: Annotated[
        float, typer.Option(callback=finite, help="Of the copied layers' output projections.")
    ] = 0.3,
    seed: Annotated[int, typer.Option(help="Of order and anchors.")] = 0,
    measure_every: Annotated[int, typer.Option(min=1, help="Updates between two measurements of acceptance.")] = 50,
    save_every: Annotated[int, typer.Option(min=1, help="Updates between two saves.")] = 50,
    dev_limit: Annotated[int, typer.Option(min=1, help="Held-out answers measured.")] = 40,
    keep_states: Annotated[
        bool | None,
        typer.Option(
            help="Keep the target's states on disk, 2 bytes times hidden size times taps + 1 for every token. "
            "By default if the run passes over the texts more than once; on a GPU they stay in its memory instead."
        ),
    ] = None,
) -> None:
    """Train a DFlash draft on its target's own texts (supervised; arXiv 2602.06036)."""
    with mendable_errors():
        from redraft.drafts.dflash_config import DraftError
        from redraft.drafts.training.settings import SftSettings
        from redraft.server.engine.target.resolve import resolve_target
        from redraft.server.train import RunOptions, train_draft

        if start is not None:
            _check_start(context)
        try:
            settings = SftSettings(
                layers=layers,
                block_size=block_size,
                taps=_numbers(taps, "--taps"),
                tap_count=tap_count,
                causal=causal,
                vocab=vocab,
                mask_token_id=mask_token_id,
                copied=_numbers(copied, "--copied"),
                output_scale=output_scale,
                steps=steps,
                batch=batch,
                micro_batch=micro_batch,
                anchors=anchors,
                max_length=max_length,
                optimiser=optimiser,
                rate=rate,
                weight_decay=weight_decay,
                clip=clip,
                warmup=warmup,
                decay_share=decay_share,
                weights=weights,
                gamma=gamma,
                alpha=alpha,
                soft=soft,
                seed=seed,
            )
        except DraftError as error:
            raise RedraftError(str(error)) from None
        options = RunOptions(
            out=out,
            start=start,
            keep_states=keep_states,
            measure_every=measure_every,
            save_every=save_every,
            dev_limit=dev_limit,
        )
        resolved = resolve_target(target, revision=revision, offline=offline)
        train_draft(resolved, data, dev or [], settings, options, device, dtype)
