"""Which nodes would have been right, and how often they are."""

from __future__ import annotations

import pytest

from redraft.server.engine.acceptance import FIRST, MAX_TRUST, MIN_TRUST, Acceptance, Proposal, outcomes

NONE = float("-inf")
#       root  a   b   aa  ab  aaa
TREE = {"token": (9, 10, 11, 12, 13, 14), "parent": (0, 0, 0, 1, 1, 3), "score": (1.0, 0.8, 0.1, 0.5, 0.2, 0.4)}


def proposal(*committed: int, verified: int = 5, **changes: object) -> Proposal:
    return Proposal(**{**TREE, **changes}, committed=committed, verified=verified)  # type: ignore[arg-type]


def test_nodes_are_ranked_by_score_and_judged_by_the_text() -> None:
    # ranks: a 0.8, aa 0.5, aaa 0.4, ab 0.2, b 0.1
    assert outcomes(proposal(10, 12, 14)) == [(0.8, True), (0.5, True), (0.4, True), (0.2, False), (0.1, False)]
    assert [hit for _, hit in outcomes(proposal(10, 13, 99))] == [True, False, False, True, False]
    assert [hit for _, hit in outcomes(proposal(77, 12, 14))] == [False] * 5, "below a wrong node all is wrong"


def test_nodes_without_rows_are_judged_where_their_parents_had_one_whatever_came_out() -> None:
    assert [hit for _, hit in outcomes(proposal(10, verified=0))] == [True, None, None, None, False]
    assert [hit for _, hit in outcomes(proposal(11, verified=0))] == [False, None, None, None, True]
    assert [hit for _, hit in outcomes(proposal(10, 12, verified=1))] == [True, True, None, False, False]
    assert [hit for _, hit in outcomes(proposal(77, verified=1))] == [False, False, None, False, False]
    assert [hit for _, hit in outcomes(proposal(10, 12, 14, verified=2))] == [True, True, True, False, False]


def test_absent_nodes_have_no_rank() -> None:
    assert [score for score, _ in outcomes(proposal(10, score=(1.0, 0.8, NONE, 0.5, float("nan"), NONE)))] == [0.8, 0.5]


def test_rates_begin_with_what_is_assumed_and_never_rise_with_rank() -> None:
    acceptance = Acceptance(8)
    assert acceptance.rates("x")[:5] == pytest.approx(FIRST)
    for text in ((10, 13, 1), (10, 13, 2), (11,)):
        acceptance.observe("x", proposal(*text))
    rates = acceptance.rates("x")
    assert rates == sorted(rates, reverse=True)
    assert len(rates) == 8


def test_a_request_is_judged_by_itself_and_newcomers_by_all() -> None:
    acceptance = Acceptance(5)
    for _ in range(60):
        acceptance.observe("good", proposal(10, 12, 14))
        acceptance.observe("bad", proposal(77))
    assert acceptance.rates("good")[0] > 0.9
    assert acceptance.rates("bad")[0] < 0.1
    assert 0.4 < acceptance.rates("new")[0] < 0.7
    acceptance.forget("bad")
    assert acceptance.rates("bad") == acceptance.rates("new")


def test_a_request_that_changes_is_noticed_within_its_memory() -> None:
    acceptance = Acceptance(5)
    for _ in range(100):
        acceptance.observe("x", proposal(77))
    low = acceptance.rates("x")[0]
    for _ in range(20):
        acceptance.observe("x", proposal(10, 12, 14))
    assert low < 0.1
    assert acceptance.rates("x")[0] > 0.5


def test_one_good_token_a_round_is_enough_to_come_back() -> None:
    """Tried without verifying: only the first node's outcome is known."""
    acceptance = Acceptance(5)
    for _ in range(50):
        acceptance.observe("x", proposal(77))
    for _ in range(20):
        acceptance.observe("x", proposal(10, verified=0))
    assert acceptance.rates("x")[0] > 0.5
    assert acceptance.rates("x")[1] < 0.1, "nothing was heard of the second"


def test_trust_is_hits_against_promises() -> None:
    acceptance = Acceptance(5)
    assert acceptance.trust("x") == pytest.approx(1.0)
    for _ in range(200):
        acceptance.observe("liar", proposal(77))
        acceptance.observe("honest", proposal(10, 12, 99))
        acceptance.observe("modest", proposal(10, 12, 14, score=(1.0, 0.1, NONE, 0.1, NONE, 0.1)))
    assert acceptance.trust("liar") < 0.15
    assert acceptance.trust("honest") == pytest.approx(2 / 2.0, abs=0.15)
    assert acceptance.trust("modest") == MAX_TRUST
    assert acceptance.trust("liar") >= MIN_TRUST


def test_what_is_known_is_forgotten_with_every_observation() -> None:
    acceptance = Acceptance(5)
    before = {name: list(acceptance.rates(name)) for name in "xy"}
    acceptance.observe("x", proposal(77))
    after = {name: list(acceptance.rates(name)) for name in "xy"}
    assert after["y"][0] < before["y"][0], "by what all have seen"
    assert after["x"][0] < after["y"][0], "and by its own"
    acceptance.forget("x")
    assert acceptance.rates("x") == after["y"], "a new one of the same name knows nothing"
