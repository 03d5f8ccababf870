"""``redraft train opd``; what it does is in train.py, loaded when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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
    Optimiser,
    Out,
    Rate,
    SaveEvery,
    States,
    Steps,
    TensorBoard,
    Warmup,
    WeightDecay,
    settings_of,
)


def opd(
    context: typer.Context,
    start: Annotated[Path, typer.Option(help="Folder of the draft to train on its own rounds.")],
    data: Data,
    out: Out,
    dev: Dev = None,
    target: Target = DEFAULT_TARGET,
    revision: Revision = None,
    offline: Offline = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    ablate: Annotated[
        Literal["no-decay", "all-forward", "all-reverse", "random-anchors", "naive"] | None,
        typer.Option(help="Change one thing, as the paper's ablations do; naive learns from the verified text alone."),
    ] = None,
    suffix_teacher: Annotated[
        Literal["draft", "trajectory", "none"],
        typer.Option(
            help="Of rows behind a round's first wrong token: the target after the drafted tokens (the paper's; needs "
            "more of the target), after the true text, or none: these rows are left out."
        ),
    ] = "trajectory",
    loss: Annotated[
        Literal["kl", "scalar", "tv"],
        typer.Option(
            help="KL over the draft's vocabulary; the released code's terms of one token a row; or the expected "
            "acceptance of a block (total variation)."
        ),
    ] = "kl",
    aggregate: Annotated[
        Literal["means", "pooled"],
        typer.Option(help="Mean of the two streams' means (paper), or one mean over all rows (released code)."),
    ] = "means",
    correction: Annotated[
        float,
        typer.Option(min=0, callback=finite, help="Weight among accepted rows of the one the target corrects."),
    ] = 0.0,
    hard: Annotated[
        float,
        typer.Option(
            min=0, max=1, callback=finite, help="Share of hard labels in accepted rows of answers at temperature 0."
        ),
    ] = 0.0,
    gamma: Annotated[
        float, typer.Option(callback=finite, help="A rejected row k of a block weighs gamma ** (k - 1).")
    ] = 0.8,
    accepted_weight: Annotated[float, typer.Option(min=0, callback=finite, help="Of the accepted stream.")] = 1.0,
    rejected_weight: Annotated[float, typer.Option(min=0, callback=finite, help="Of the rejected stream.")] = 1.0,
    tree_nodes: Annotated[
        int, typer.Option(min=0, max=63, help="Drafted nodes of the tree that decides the rounds; 0: chains.")
    ] = 0,
    steps: Steps = 400,
    batch: Batch = 8,
    micro_batch: MicroBatch = 1,
    max_length: MaxLength = 1024,
    optimiser: Optimiser = "muon",
    rate: Rate = 3e-3,
    weight_decay: WeightDecay = 0.01,
    clip: Clip = 1.0,
    warmup: Warmup = 20,
    decay_share: DecayShare = 0.5,
    seed: Annotated[int, typer.Option(help="Of order and random anchors.")] = 0,
    measure_every: MeasureEvery = 50,
    save_every: SaveEvery = 50,
    dev_limit: DevLimit = 40,
    keep_states: Annotated[
        bool | None,
        typer.Option(help="Keep the target's states on disk. By default if the run passes over the texts repeatedly."),
    ] = None,
    states: States = None,
    tensorboard: TensorBoard = False,
) -> None:
    """Train a draft on its own rejected tokens (Draft-OPD; arXiv 2605.29343).

    The objective is the paper's. What did best on the default target is --ablate naive --hard 0.5, and as long as
    'redraft train sft --start' helps, that helps more (docs/draft-opd.md).
    """
    with mendable_errors():
        from redraft.drafts.training.opd_settings import OpdSettings, ablated
        from redraft.server.engine.draft_errors import as_redraft_error
        from redraft.server.engine.target.resolve import resolve_target
        from redraft.server.train import RunOptions, train_draft

        settings = settings_of(OpdSettings, context)
        if ablate is not None:
            with as_redraft_error():
                settings = ablated(settings, ablate)
        keep = True if states is not None else keep_states
        options = RunOptions(out, start, keep, states, measure_every, save_every, dev_limit, tensorboard=tensorboard)
        resolved = resolve_target(target, revision=revision, offline=offline)
        train_draft(resolved, data, dev or [], settings, options, device, dtype)
