"""What a pass costs: read off a table, corrected by what passes take."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redraft.server.engine.costs import ODD, Costs, CostTable, Work, read_table

TABLE = CostTable(
    rows=(2, 8, 16),
    passes=(0.010, 0.012, 0.020),
    per_request=1e-6,
    per_row=1e-7,
    requests=(1, 4),
    drafts=(0.001, 0.004),
    round=0.002,
)


def test_between_and_beyond_measured_sizes_costs_follow_straight_lines() -> None:
    assert [TABLE.forward(rows) for rows in (1, 2, 5, 8, 12, 16)] == pytest.approx(
        [0.01, 0.01, 0.011, 0.012, 0.016, 0.02]
    )
    assert TABLE.forward(32) == pytest.approx(0.036)
    assert [TABLE.draft(n) for n in (1, 2, 4, 8)] == pytest.approx([0.001, 0.002, 0.004, 0.008])
    single = replace(TABLE, requests=(1,), drafts=(0.003,))
    assert single.draft(9) == 0.003


def test_work_is_passes_attention_draft_and_the_rest() -> None:
    costs = Costs(TABLE)
    assert costs.seconds(Work(8, 2)) == pytest.approx(0.014)
    assert costs.seconds(Work(8, 2, context=1000, row_context=4000)) == pytest.approx(0.014 + 0.001 + 0.0004)
    assert costs.seconds(Work(8, 2, drafting=True)) == pytest.approx(0.014 + 0.002)


def test_a_machine_that_slows_down_is_followed_without_changing_what_choices_are_worth() -> None:
    costs = Costs(TABLE)
    small, large = Work(8, 2), Work(16, 2, drafting=True)
    for _ in range(40):
        costs.took(small, 0.014)
        costs.took(large, 0.024)
    before = costs.seconds(large) / costs.seconds(small)
    for _ in range(60):
        costs.took(small, 1.5 * 0.014)
    assert costs.seconds(small) == pytest.approx(1.5 * 0.014, rel=0.02)
    assert costs.seconds(large) / costs.seconds(small) == pytest.approx(before, rel=0.12)


def test_a_kind_of_step_that_is_dearer_than_measured_is_learned() -> None:
    costs = Costs(TABLE)
    small, large = Work(8, 2), Work(16, 2, drafting=True)
    for _ in range(300):
        costs.took(small, 0.014)
        costs.took(large, 2 * 0.024)
    assert costs.seconds(small) == pytest.approx(0.014, rel=0.1)
    assert costs.seconds(large) == pytest.approx(0.048, rel=0.1)


def test_a_hiccup_counts_for_little() -> None:
    costs = Costs(TABLE)
    for _ in range(50):
        costs.took(Work(8, 2), 0.014)
    costs.took(Work(8, 2), 60.0)
    assert costs.seconds(Work(8, 2)) < 0.014 * ODD**0.2


def test_a_draft_that_is_cheaper_than_measured_is_found_out_by_a_few_tries_and_for_all_sizes() -> None:
    costs = Costs(replace(TABLE, drafts=(0.010, 0.040)))
    for number in range(200):
        costs.took(Work(8, 4), 0.014)
        if number % 20 == 0:
            costs.took(Work(8, 4, drafting=True), 0.014 + 0.006)
    found = costs.seconds(Work(16, 4, drafting=True)) - costs.seconds(Work(16, 4))
    assert 0.004 < found < 0.010, "the table says 0.040"
    assert costs.seconds(Work(8, 4)) == pytest.approx(0.014, rel=0.05)


@given(st.lists(st.tuples(st.sampled_from((2, 8, 16)), st.booleans(), st.floats(1e-6, 100)), max_size=50))
def test_costs_stay_positive_and_finite(steps: list[tuple[int, bool, float]]) -> None:
    costs = Costs(TABLE)
    for rows, drafting, seconds in steps:
        costs.took(Work(rows, 1, drafting=drafting), seconds)
        assert 0 < costs.seconds(Work(rows, 1, drafting=drafting)) < 1e6


def test_a_table_is_kept_as_json() -> None:
    assert read_table(json.loads(json.dumps(asdict(TABLE)))) == TABLE
    for raw in ({}, {"rows": [1]}, [], {**asdict(TABLE), "rows": [8, 2, 16]}, {**asdict(TABLE), "passes": ["x", 1, 2]}):
        with pytest.raises(ValueError):  # noqa: PT011 - whatever is wrong, it is measured again
            read_table(raw)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change", [{"rows": (8, 2, 16)}, {"passes": (1.0,)}, {"per_row": -1.0}, {"rows": (), "passes": ()}]
)
def test_what_is_no_table_is_refused(change: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match=r"ascend|negative"):
        replace(TABLE, **change)
