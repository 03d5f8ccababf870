"""``redraft bench cost``: its options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from redraft.server.engine.types import RedraftError
from redraft.server.options import finite


def above_zero(value: float) -> float:
    """``value``, refused unless it is a finite number above 0."""
    if finite(value) <= 0:
        raise typer.BadParameter(f"{value} is not above 0.")
    return value


def maybe_above_zero(value: float | None) -> float | None:
    """The same where something is given."""
    return None if value is None else above_zero(value)


def cost(
    load: Annotated[
        Path, typer.Argument(help="JSON that 'bench load' or 'bench simulate' wrote; its last line counts.")
    ],
    price_per_hour: Annotated[
        float, typer.Option(callback=above_zero, help="What the machine costs an hour; in a fleet each replica's.")
    ],
    currency: Annotated[str, typer.Option(help="Of the prices.")] = "USD",
    watts: Annotated[
        float | None,
        typer.Option(callback=maybe_above_zero, help="Power of the machine under load. Else what the load measured."),
    ] = None,
    draft: Annotated[
        Path | None,
        typer.Option(help="Folder of the draft whose card says what training took. By default the shipped one's."),
    ] = None,
    training_price_per_hour: Annotated[
        float | None,
        typer.Option(callback=maybe_above_zero, help="Of the machine that trained. By default the same price."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the line of JSON to this file too.")] = None,
) -> None:
    """What a million output tokens cost, in money and energy, plain against speculative, at each load.

    And after how many tokens a draft has paid for its training.

    The last line on stdout is JSON.
    """
    from redraft.benchmarks.cost_report import Prices, run

    if not currency.strip() or len(currency) > 16 or not currency.isprintable():
        raise RedraftError("--currency must be a short name, such as USD")
    prices = Prices(price_per_hour, currency.strip(), training_price_per_hour, watts)
    run(load, prices, draft, json_file, ["redraft", *sys.argv[1:]])
