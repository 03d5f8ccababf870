"""``redraft train selector``; what it does is in train.py, loaded when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from redraft.server.options import DEFAULT_TARGET, Device, Offline, Revision, Target, finite, mendable_errors
from redraft.server.train_options import (
    Batch,
    Clip,
    Data,
    DecayShare,
    Dev,
    DevLimit,
    Dtype,
    MaxLength,
    MeasureEvery,
    MicroBatch,
    Out,
    Rate,
    SaveEvery,
    States,
    Steps,
    TensorBoard,
    Warmup,
    settings_of,
)


def selector(
    context: typer.Context,
    start: Annotated[Path, typer.Option(help="Folder of the DFlash draft that gets one; it stays as it is otherwise.")],
    data: Data,
    out: Out,
    dev: Dev = None,
    target: Target = DEFAULT_TARGET,
    revision: Revision = None,
    offline: Offline = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    steps: Steps = 800,
    batch: Batch = 8,
    micro_batch: MicroBatch = 1,
    max_length: MaxLength = 1024,
    rank: Annotated[int, typer.Option(min=1, help="Numbers kept of a token in front and of one behind.")] = 64,
    anchors: Annotated[int, typer.Option(min=1, help="Most blocks drawn from a text.")] = 64,
    candidates: Annotated[
        int, typer.Option(min=2, help="Likeliest tokens of a row among which the selector learns to find the text's.")
    ] = 16,
    dropout: Annotated[
        float, typer.Option(min=0, max=1, callback=finite, help="Of the numbers of the token in front.")
    ] = 0.5,
    alpha: Annotated[
        float,
        typer.Option(
            min=0, max=1, callback=finite, help="Weight of a row whatever the draft thinks of the block before it."
        ),
    ] = 0.3,
    rate: Rate = 5e-3,
    clip: Clip = 1.0,
    warmup: Warmup = 20,
    decay_share: DecayShare = 1.0,
    seed: Annotated[int, typer.Option(help="Of the first tables, the order of texts and the anchors.")] = 0,
    measure_every: MeasureEvery = 50,
    save_every: SaveEvery = 50,
    dev_limit: DevLimit = 40,
    states: States = None,
    tensorboard: TensorBoard = False,
) -> None:
    """Fit which drafted token follows which: tables behind a finished DFlash draft, which stays as it is otherwise."""
    with mendable_errors():
        from redraft.drafts.training.selector_settings import SelectorSettings
        from redraft.server.engine.target.resolve import resolve_target
        from redraft.server.train import RunOptions, train_draft

        settings = settings_of(SelectorSettings, context)
        keep = True if states is not None else None
        options = RunOptions(out, start, keep, states, measure_every, save_every, dev_limit, tensorboard=tensorboard)
        resolved = resolve_target(target, revision=revision, offline=offline)
        train_draft(resolved, data, dev or [], settings, options, device, dtype)
