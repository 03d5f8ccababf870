"""``redraft train opd``; what it does is in train.py, loaded when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from redraft.server.engine.types import RedraftError
from redraft.server.options import DEFAULT_TARGET, Device, Offline, Revision, Target, finite, mendable_errors


def opd(
    start: Annotated[Path, typer.Option(help="Folder of the draft to train on its own rounds.")],
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
    target: Target = DEFAULT_TARGET,
    revision: Revision = None,
    offline: Offline = False,
    device: Device = "auto",
    dtype: Annotated[
        Literal["auto", "bf16", "fp32"],
        typer.Option(help="Of the target's passes; auto: bf16 on a GPU, fp32 on a CPU, where it is faster."),
    ] = "auto",
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
    steps: Annotated[int, typer.Option(min=1, help="Updates of the weights; may be changed when a run goes on.")] = 400,
    batch: Annotated[int, typer.Option(min=1, help="Texts an update.")] = 8,
    micro_batch: Annotated[int, typer.Option(min=1, help="Texts a pass; more on a GPU.")] = 1,
    max_length: Annotated[int, typer.Option(min=8, help="Texts are cut to so many tokens.")] = 1024,
    optimiser: Annotated[Literal["muon", "adamw"], typer.Option(help="Muon steps matrices, AdamW norms.")] = "muon",
    rate: Annotated[float, typer.Option(callback=finite, help="Peak learning rate, on AdamW's scale for both.")] = 3e-3,
    weight_decay: Annotated[float, typer.Option(min=0, callback=finite, help="Of the matrices.")] = 0.01,
    clip: Annotated[float, typer.Option(callback=finite, help="Largest norm of a gradient.")] = 1.0,
    warmup: Annotated[int, typer.Option(min=0, help="Updates in which the rate rises.")] = 20,
    decay_share: Annotated[
        float, typer.Option(min=0, max=1, callback=finite, help="Share of the updates, at the end, in which it falls.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Of order and random anchors.")] = 0,
    measure_every: Annotated[int, typer.Option(min=1, help="Updates between two measurements of acceptance.")] = 50,
    save_every: Annotated[int, typer.Option(min=1, help="Updates between two saves.")] = 50,
    dev_limit: Annotated[int, typer.Option(min=1, help="Held-out answers measured.")] = 40,
    keep_states: Annotated[
        bool | None,
        typer.Option(help="Keep the target's states on disk. By default if the run passes over the texts repeatedly."),
    ] = None,
    states: Annotated[
        Path | None,
        typer.Option(help="Folder of kept states that runs over the same texts share, like run/target-states."),
    ] = None,
) -> None:
    """Train a DFlash draft on its own rejected tokens (Draft-OPD; arXiv 2605.29343)."""
    with mendable_errors():
        from redraft.drafts.dflash_config import DraftError
        from redraft.drafts.training.opd_settings import OpdSettings, ablated
        from redraft.server.engine.target.resolve import resolve_target
        from redraft.server.train import RunOptions, train_draft

        try:
            settings = OpdSettings(
                steps=steps,
                batch=batch,
                micro_batch=micro_batch,
                max_length=max_length,
                optimiser=optimiser,
                rate=rate,
                weight_decay=weight_decay,
                clip=clip,
                warmup=warmup,
                decay_share=decay_share,
                gamma=gamma,
                seed=seed,
                tree_nodes=tree_nodes,
                loss=loss,
                aggregate=aggregate,
                accepted_weight=accepted_weight,
                rejected_weight=rejected_weight,
                correction=correction,
                suffix_teacher=suffix_teacher,
                hard=hard,
            )
            settings = settings if ablate is None else ablated(settings, ablate)
        except DraftError as error:
            raise RedraftError(str(error)) from None
        keep = True if states is not None else keep_states
        options = RunOptions(out, start, keep, states, measure_every, save_every, dev_limit)
        resolved = resolve_target(target, revision=revision, offline=offline)
        train_draft(resolved, data, dev or [], settings, options, device, dtype)
