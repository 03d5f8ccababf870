"""The ``redraft train`` commands; what they do is in train.py, loaded when one runs."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from redraft.server.options import (
    DEFAULT_TARGET,
    Device,
    Offline,
    Revision,
    Target,
    finite,
    mendable_errors,
)
from redraft.server.train_eagle3_cli import eagle3
from redraft.server.train_opd_cli import opd
from redraft.server.train_options import (
    Batch,
    Clip,
    Data,
    DecayShare,
    Dev,
    DevLimit,
    DraftVocab,
    Dtype,
    KeepStates,
    MaxLength,
    MeasureEvery,
    MicroBatch,
    Optimiser,
    Out,
    OutputScale,
    Rate,
    SaveEvery,
    Start,
    Steps,
    Taps,
    TensorBoard,
    Warmup,
    WeightDecay,
    numbers,
    refuse_settled,
    settings_of,
)
from redraft.server.train_selector_cli import selector

app = typer.Typer(
    help="Train drafts for a target.  A run can be stopped with Ctrl-C and goes on with the same command.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


app.command()(opd)
app.command()(eagle3)
app.command()(selector)


@app.callback()
def train() -> None:
    """Train drafts for a target.  A run can be stopped with Ctrl-C and goes on with the same command."""


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


@app.command()
def sft(
    context: typer.Context,
    data: Data,
    out: Out,
    dev: Dev = None,
    start: Start = None,
    target: Target = DEFAULT_TARGET,
    revision: Revision = None,
    offline: Offline = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    steps: Steps = 1400,
    batch: Batch = 8,
    micro_batch: MicroBatch = 1,
    anchors: Annotated[int, typer.Option(min=1, help="Most blocks drawn from a text.")] = 96,
    max_length: MaxLength = 1024,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the draft.")] = 2,
    block_size: Annotated[int, typer.Option(min=2, help="Rows of a block: the anchor and the tokens drafted.")] = 6,
    taps: Taps = "",
    tap_count: Annotated[int, typer.Option(min=1, help="How many, evenly spaced, where --taps names none.")] = 3,
    copied: Annotated[
        str, typer.Option(help="Target layers to start from, like 28,29; the last ones if left out.")
    ] = "",
    causal: Annotated[
        bool, typer.Option("--causal", help="A block's rows see only those before them (JetSpec).")
    ] = False,
    vocab: DraftVocab = 8192,
    mask_token_id: Annotated[
        int, typer.Option(min=0, help="Token the target never uses, fed where one is drafted.")
    ] = 16,
    optimiser: Optimiser = "muon",
    rate: Rate = 5e-3,
    weight_decay: WeightDecay = 0.01,
    clip: Clip = 1.0,
    warmup: Warmup = 20,
    decay_share: DecayShare = 0.25,
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
    output_scale: OutputScale = 0.3,
    seed: Annotated[int, typer.Option(help="Of order and anchors.")] = 0,
    measure_every: MeasureEvery = 50,
    save_every: SaveEvery = 50,
    dev_limit: DevLimit = 40,
    keep_states: KeepStates = None,
    tensorboard: TensorBoard = False,
) -> None:
    """Train a DFlash draft on its target's own texts (supervised; arXiv 2602.06036)."""
    with mendable_errors():
        from redraft.drafts.training.settings import SftSettings
        from redraft.server.engine.target.resolve import resolve_target
        from redraft.server.train import RunOptions, train_draft

        if start is not None:
            refuse_settled(context, ARCHITECTURE)
        settings = settings_of(SftSettings, context, taps=numbers(taps, "--taps"), copied=numbers(copied, "--copied"))
        options = RunOptions(
            out=out,
            start=start,
            keep_states=keep_states,
            measure_every=measure_every,
            save_every=save_every,
            dev_limit=dev_limit,
            tensorboard=tensorboard,
        )
        resolved = resolve_target(target, revision=revision, offline=offline)
        train_draft(resolved, data, dev or [], settings, options, device, dtype)
