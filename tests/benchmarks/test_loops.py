"""The share of looping text."""

import pytest

from redraft.benchmarks.loops import MAX_PERIOD, looping


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ([], 0),
        ([1, 2, 3, 4, 5], 0),
        ([7, 7, 7], 0),
        ([7, 7, 7, 7, 7], 2),
        ([1, 2, 1, 2, 1, 2], 0),
        ([9, 1, 2, 1, 2, 1, 2, 1, 2, 5], 2),
        ([1, 2, 3] * 5, 6),
        (list(range(MAX_PERIOD)) * 4, MAX_PERIOD),
        (list(range(MAX_PERIOD + 1)) * 4, 0),
        (["so", "it", "is"] * 4, 3),
    ],
)
def test_counts_what_goes_on_after_three_periods(units: list[object], expected: int) -> None:
    assert looping(units) == expected
