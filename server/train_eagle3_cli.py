"""``redraft train eagle3``; what it does is in train.py, loaded when it runs."""

from __future__ import annotations

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
    States,
    Steps,
    Taps,
    TensorBoard,
    Warmup,
    WeightDecay,
    numbers,
    refuse_settled,
    settings_of,
)

ARCHITECTURE = {
    "taps": "--taps",
    "draft_vocab": "--draft-vocab",
    "copied": "--copied",
    "output_scale": "--output-scale",
}
"""Options that a draft to go on from has settled."""


def eagle3(
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
    max_length: MaxLength = 1024,
    depth: Annotated[int, typer.Option(min=1, help="Passes of the draft's layer a round; each drafts a token.")] = 7,
    taps: Taps = "",
    draft_vocab: DraftVocab = 8192,
    copied: Annotated[int, typer.Option(min=-1, help="Target layer to start from; -1: the last one.")] = -1,
    optimiser: Optimiser = "muon",
    rate: Rate = 5e-3,
    weight_decay: WeightDecay = 0.01,
    clip: Clip = 1.0,
    warmup: Warmup = 20,
    decay_share: DecayShare = 0.25,
    gamma: Annotated[float, typer.Option(callback=finite, help="A row of pass i, from 0, weighs gamma ** i.")] = 0.8,
    soft: Annotated[
        float,
        typer.Option(
            min=0, max=1, callback=finite, help="Share of the target's distribution; the rest is hard labels."
        ),
    ] = 1.0,
    output_scale: OutputScale = 1.0,
    seed: Annotated[int, typer.Option(help="Of the order of texts.")] = 0,
    measure_every: MeasureEvery = 50,
    save_every: SaveEvery = 50,
    dev_limit: DevLimit = 40,
    keep_states: KeepStates = None,
    states: States = None,
    tensorboard: TensorBoard = False,
) -> None:
    """Train an EAGLE-3 draft on its target's own texts (training-time test; arXiv 2503.01840)."""
    with mendable_errors():
        from redraft.drafts.training.eagle3_settings import Eagle3Settings
        from redraft.server.engine.target.resolve import resolve_target
        from redraft.server.train import RunOptions, train_draft

        if start is not None:
            refuse_settled(context, ARCHITECTURE)
        settings = settings_of(Eagle3Settings, context, taps=numbers(taps, "--taps"))
        keep = True if states is not None else keep_states
        options = RunOptions(out, start, keep, states, measure_every, save_every, dev_limit, tensorboard=tensorboard)
        resolved = resolve_target(target, revision=revision, offline=offline)
        train_draft(resolved, data, dev or [], settings, options, device, dtype)
