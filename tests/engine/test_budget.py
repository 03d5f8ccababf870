"""The rule of the budget, on made-up costs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redraft.server.engine.budget import MARGIN, best_nodes, prefill_rows
from redraft.server.engine.rows_plan import BUCKETS, row_bucket


def flat(rows: int, drafting: bool) -> float:
    """Memory-bound: rows are free."""
    return 1.0 + 0.05 * drafting


def linear(rows: int, drafting: bool) -> float:
    """Compute-bound: every row costs the same."""
    return 0.1 * rows + 0.05 * drafting


def stairs(rows: int, drafting: bool) -> float:
    """Free up to 6 rows, then dear."""
    return 1.0 + 0.2 * max(0, rows - 6) + 0.05 * drafting


def test_where_rows_are_free_all_that_hits_at_all_is_verified() -> None:
    assert best_nodes([[0.5, 0.2, 0.1]], flat, 64).nodes == 3
    assert best_nodes([[0.5] * 7] * 4, flat, 64).nodes == 28


def test_where_rows_cost_what_they_bring_nothing_is_drafted() -> None:
    assert best_nodes([[0.3, 0.2]] * 8, linear, 64).nodes == 0
    assert best_nodes([[0.3, 0.2]] * 8, linear, 64).tokens_per_second == pytest.approx(8 / 0.8)


def test_rows_are_taken_as_far_as_they_pay() -> None:
    assert best_nodes([[0.8, 0.6, 0.4, 0.3, 0.2, 0.15, 0.1]], stairs, 64).nodes == 5


def test_a_draft_that_never_hits_is_left_out_even_where_it_is_cheap() -> None:
    assert best_nodes([[0.0] * 5] * 3, flat, 64).nodes == 0
    assert best_nodes([[0.04] * 1], flat, 64).nodes == 0, "the draft costs 5 %"


def test_drafting_must_promise_more_than_noise() -> None:
    def even(rows: int, drafting: bool) -> float:
        return 1.0 + 0.099 * drafting

    assert best_nodes([[0.1]], even, 8).nodes == 0
    assert 1 + MARGIN > 1.1 / 1.099


def test_requests_that_may_have_none_get_none_and_others_theirs() -> None:
    assert best_nodes([[], [0.9, 0.8, 0.7], []], flat, 64).nodes == 3
    assert best_nodes([[], []], flat, 64).nodes == 0


def test_the_bound_of_rows_holds() -> None:
    assert best_nodes([[0.9] * 8] * 4, flat, 16).nodes == 12
    assert best_nodes([[0.9] * 8] * 4, flat, 4).nodes == 0


def test_beside_prefill_rows_that_were_free_are_so_no_longer() -> None:
    rates = [[0.8, 0.6, 0.4, 0.3, 0.2]]
    alone = best_nodes(rates, stairs, 64)
    beside = best_nodes(rates, stairs, 64, prefill=23, per_second=alone.tokens_per_second)
    assert alone.nodes == 5
    assert beside.nodes < alone.nodes


@given(
    st.lists(st.lists(st.floats(0, 1), max_size=6), min_size=1, max_size=6),
    st.lists(st.floats(0.5, 3), min_size=len(BUCKETS), max_size=len(BUCKETS)),
    st.floats(0, 0.5),
    st.integers(1, 64),
)
def test_no_other_number_of_nodes_that_fills_a_pass_is_better(
    rates: list[list[float]], prices: list[float], draft: float, most: int
) -> None:
    rates = [sorted(own, reverse=True) for own in rates]

    def seconds(rows: int, drafting: bool) -> float:
        return prices[BUCKETS.index(rows)] + draft * drafting

    def worth(nodes: int) -> float:
        gains = sorted((rate for own in rates for rate in own), reverse=True)
        return (len(rates) + sum(gains[:nodes])) / seconds(row_bucket(len(rates) + nodes), nodes > 0)

    choice = best_nodes(rates, seconds, most)
    total = sum(map(len, rates))
    assert 0 <= choice.nodes <= total
    assert choice.tokens_per_second == pytest.approx(worth(choice.nodes))
    assert choice.nodes == 0 or choice.tokens_per_second > worth(0)
    for nodes in range(1, total + 1):
        if row_bucket(len(rates) + nodes) <= most:
            assert worth(nodes) <= max(choice.tokens_per_second, worth(0) * (1 + MARGIN)) * (1 + 1e-9)


def step(base: int) -> Callable[[int], float]:
    return lambda rows: 1.0 + 0.02 * max(0, base + rows - 8)


def test_prefill_goes_along_as_far_as_streams_bear_it() -> None:
    assert prefill_rows(step(8), 1000, 500, stall=1.705, least=8) == 35
    assert prefill_rows(step(8), 10, 500, stall=1.7, least=8) == 10
    assert prefill_rows(step(8), 1000, 20, stall=1.7, least=8) == 20
    assert prefill_rows(lambda rows: 1.0 + rows, 1000, 500, stall=1.7, least=8) == 8, "a prompt gets on in any case"
    assert prefill_rows(step(8), 3, 500, stall=1.0, least=8) == 3
    assert prefill_rows(step(8), 0, 500, stall=1.7, least=8) == 0
