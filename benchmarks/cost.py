"""What tokens cost: money, energy, and when a draft has paid for its training.  Arithmetic only."""

from __future__ import annotations

import math
from dataclasses import dataclass

MILLION = 1_000_000
SECONDS_PER_HOUR = 3600
JOULES_PER_KWH = 3_600_000


@dataclass(frozen=True, slots=True)
class Side:
    """Decoding one way at one load."""

    tokens_per_second: float
    """Output tokens of all that is paid for together."""
    watts: float | None = None
    """Power of all that together; None where it is not known."""


def money_per_million(price_per_hour: float, tokens_per_second: float) -> float:
    """What a million output tokens cost at a price per hour, in its currency."""
    return price_per_hour / SECONDS_PER_HOUR / tokens_per_second * MILLION


def kwh_per_million(watts: float, tokens_per_second: float) -> float:
    """Energy of a million output tokens, in kilowatt-hours."""
    return watts / tokens_per_second * MILLION / JOULES_PER_KWH


def training_cost(seconds: float, price_per_hour: float) -> float:
    """What so many seconds of training cost."""
    return seconds / SECONDS_PER_HOUR * price_per_hour


def break_even_tokens(training: float, plain_per_million: float, speculative_per_million: float) -> float | None:
    """Output tokens after which a draft's training has paid for itself; None for never.

    What cost nothing has paid for itself at once, even where it saves nothing.
    """
    if training == 0:
        return 0.0
    saved = (plain_per_million - speculative_per_million) / MILLION
    tokens = training / saved if saved > 0 else math.inf
    return tokens if math.isfinite(tokens) else None


@dataclass(frozen=True, slots=True)
class SideCost:
    """Of a million output tokens."""

    money: float
    kwh: float | None
    """None where the power is not known."""


@dataclass(frozen=True, slots=True)
class LevelCost:
    """Both ways at one load; a way that was not measured is None, and so is what needs it."""

    plain: SideCost | None
    speculative: SideCost | None
    saved: float | None
    """Share of plain decoding's money; negative where speculation costs more."""
    break_even_tokens: float | None
    """None for never, and where it is not known."""
    pays: bool | None
    """Whether the training ever pays for itself; None where it is not known."""


def side_cost(side: Side, price_per_hour: float) -> SideCost:
    """What one way costs."""
    money = money_per_million(price_per_hour, side.tokens_per_second)
    return SideCost(money, None if side.watts is None else kwh_per_million(side.watts, side.tokens_per_second))


def level_cost(
    plain: Side | None, speculative: Side | None, price_per_hour: float, training: float | None
) -> LevelCost:
    """Both ways at one load; ``training`` is the draft's cost, None where it is not known."""
    one = side_cost(plain, price_per_hour) if plain else None
    other = side_cost(speculative, price_per_hour) if speculative else None
    if one is None or other is None:
        return LevelCost(one, other, None, None, None)
    saved = 1 - other.money / one.money
    if training is None:
        return LevelCost(one, other, saved, None, None)
    tokens = break_even_tokens(training, one.money, other.money)
    return LevelCost(one, other, saved, tokens, tokens is not None)
