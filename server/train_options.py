"""Options that all ``redraft train`` commands share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from redraft.server.engine.types import RedraftError
from redraft.server.options import finite, on_command_line

if TYPE_CHECKING:
    from redraft.drafts.training.settings import RunSettings

Kind = TypeVar("Kind", bound="RunSettings")

Data = Annotated[
    list[Path],
    typer.Option(
        help="Texts of the target, as 'redraft data respond' writes them (.jsonl or .jsonl.gz); repeat for several."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder of the run: log.jsonl, saves, and at the end the draft.")]
Dev = Annotated[
    list[Path] | None,
    typer.Option(help="Texts set aside, on which the acceptance length is shown; none are trained on."),
]
Start = Annotated[
    Path | None,
    typer.Option(
        help="Folder of a finished draft to go on from, with its architecture and vocabulary; else the target's "
        "own layers are the start."
    ),
]
States = Annotated[
    Path | None,
    typer.Option(help="Folder of kept states that runs over the same texts share, like run/target-states."),
]
Dtype = Annotated[
    Literal["auto", "bf16", "fp32"],
    typer.Option(
        help="Of products, the target's and the draft's; a draft's weights stay fp32. auto: bf16 on a GPU; on a CPU "
        "what is measured to be faster; what a run began with when it goes on."
    ),
]
Steps = Annotated[int, typer.Option(min=1, help="Updates of the weights; may be changed when a run goes on.")]
Batch = Annotated[int, typer.Option(min=1, help="Texts an update.")]
MicroBatch = Annotated[int, typer.Option(min=1, help="Texts a pass; more on a GPU.")]
MaxLength = Annotated[int, typer.Option(min=8, help="Texts are cut to so many tokens.")]
Taps = Annotated[str, typer.Option(help="Target layers whose outputs the draft reads, like 1,14,27.")]
DraftVocab = Annotated[
    int, typer.Option(min=0, help="Tokens the draft can propose, the most frequent ones; 0 keeps all.")
]
OutputScale = Annotated[float, typer.Option(callback=finite, help="Of the copied layers' output projections.")]
Optimiser = Annotated[Literal["muon", "adamw"], typer.Option(help="Muon steps matrices, AdamW norms.")]
Rate = Annotated[float, typer.Option(callback=finite, help="Peak learning rate, on AdamW's scale for both.")]
WeightDecay = Annotated[float, typer.Option(min=0, callback=finite, help="Of the matrices.")]
Clip = Annotated[float, typer.Option(callback=finite, help="Largest norm of a gradient.")]
Warmup = Annotated[int, typer.Option(min=0, help="Updates in which the rate rises.")]
DecayShare = Annotated[
    float, typer.Option(min=0, max=1, callback=finite, help="Share of the updates, at the end, in which it falls.")
]
MeasureEvery = Annotated[int, typer.Option(min=1, help="Updates between two measurements of acceptance.")]
SaveEvery = Annotated[int, typer.Option(min=1, help="Updates between two saves.")]
DevLimit = Annotated[int, typer.Option(min=1, help="Held-out answers measured.")]
KeepStates = Annotated[
    bool | None,
    typer.Option(
        help="Keep the target's states on disk, 2 bytes times hidden size times taps + 1 for every token. "
        "By default if the run passes over the texts more than once; on a GPU they stay in its memory instead."
    ),
]


def _installed(value: bool) -> bool:
    """``value``, refused where events are wanted and what writes them is missing."""
    if value and find_spec("tensorboard") is None:
        raise typer.BadParameter("the package that writes events is not installed: pip install tensorboard")
    return value


TensorBoard = Annotated[
    bool,
    typer.Option("--tensorboard", callback=_installed, help="Write scalars of every step to events/ for TensorBoard."),
]


def numbers(text: str, name: str) -> tuple[int, ...]:
    """``text`` as a list of numbers; ``name`` is the option that takes it."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers like 1,14,27", param_hint=name) from None


def refuse_settled(context: typer.Context, settled: Mapping[str, str]) -> None:
    """Refuse options, by parameter, that a draft to go on from has settled."""
    given = [option for name, option in settled.items() if on_command_line(context, name)]
    if given:
        raise RedraftError(f"{', '.join(given)}: settled by the draft of --start; leave it out")


def settings_of(kind: type[Kind], context: typer.Context, **made: Any) -> Kind:
    """``kind``'s settings: each the option of its name or what ``made`` has of it, else its default.

    ``start`` becomes a version when the draft is read.  Raises ``RedraftError`` for what cannot be trained.
    """
    from redraft.server.engine.draft_errors import as_redraft_error

    names = {field.name for field in fields(kind)} & set(context.params) - {"start", *made}
    with as_redraft_error():
        return kind(**made, **{name: context.params[name] for name in names})
