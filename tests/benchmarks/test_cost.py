"""What tokens cost, by hand."""

from __future__ import annotations

import pytest

from redraft.benchmarks.cost import (
    LevelCost,
    Side,
    SideCost,
    break_even_tokens,
    kwh_per_million,
    level_cost,
    money_per_million,
    training_cost,
)


def test_money() -> None:
    # 100 tokens a second are 0.36 million an hour
    assert money_per_million(3.60, 100.0) == pytest.approx(10.0)
    assert money_per_million(2.50, 1000.0) == pytest.approx(2.50 / 3.6)


def test_energy() -> None:
    # a million tokens at 1000 a second take 1000 s; 360 W for 1000 s are 0.1 kWh
    assert kwh_per_million(360.0, 1000.0) == pytest.approx(0.1)


def test_training() -> None:
    assert training_cost(5400.0, 2.0) == pytest.approx(3.0)


def test_break_even() -> None:
    # 4 a million are saved, so 3 are back after three quarters of a million
    assert break_even_tokens(3.0, 10.0, 6.0) == pytest.approx(750_000)
    assert break_even_tokens(3.0, 10.0, 10.0) is None
    assert break_even_tokens(3.0, 6.0, 10.0) is None
    assert break_even_tokens(1e300, 1.0, 1.0 - 1e-16) is None, "beyond any number is never"
    assert break_even_tokens(0.0, 6.0, 10.0) == 0.0


def test_a_level() -> None:
    found = level_cost(Side(100.0, 36.0), Side(200.0), 3.60, 3.0)
    assert found.plain == SideCost(pytest.approx(10.0), pytest.approx(0.1))
    assert found.speculative == SideCost(pytest.approx(5.0), None)
    assert found.saved == pytest.approx(0.5)
    assert found.break_even_tokens == pytest.approx(600_000)
    assert found.pays is True


def test_a_level_at_which_nothing_is_saved() -> None:
    found = level_cost(Side(200.0), Side(160.0), 3.60, 3.0)
    assert found.saved == pytest.approx(-0.25)
    assert found.break_even_tokens is None
    assert found.pays is False


def test_what_is_not_known_stays_unknown() -> None:
    assert level_cost(Side(100.0), None, 3.60, 3.0) == LevelCost(SideCost(pytest.approx(10.0), None), *[None] * 4)
    found = level_cost(Side(100.0), Side(200.0), 3.60, None)
    assert found.saved == pytest.approx(0.5)
    assert (found.break_even_tokens, found.pays) == (None, None)
