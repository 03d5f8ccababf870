"""Figures from hand-made timings, and the table of them."""

from typing import Any

import pytest

from redraft.benchmarks.load_clients import Answer, Event
from redraft.benchmarks.load_figures import level_figures, pass_figures, percentile, side_figures
from redraft.benchmarks.load_plan import Level
from redraft.benchmarks.load_run import LevelRun, Pass, Record
from redraft.benchmarks.load_table import table


def record(
    number: int,
    sent: float,
    *events: tuple[float, float],
    user: int = 0,
    said: str = "same",
    rounds: tuple[int, ...] | None = None,
    drafted: int | None = None,
    counted: bool = True,
) -> Record:
    """A request whose answer came in ``events``: seconds and tokens."""
    made = tuple(Event(at, tokens) for at, tokens in events)
    tokens = round(sum(event.tokens for event in made))
    answer = Answer(made, tokens, (said,), rounds, drafted, counted)
    return Record(number, user, sent, made[-1].at, answer)


def failed(number: int, sent: float, ended: float, user: int = 0) -> Record:
    return Record(number, user, sent, ended, error="no room")


def test_percentiles_by_nearest_rank() -> None:
    values = [(float(value), 1.0) for value in range(100, 0, -1)]
    assert [percentile(values, percent) for percent in (50, 90, 99, 100)] == [50, 90, 99, 100]
    assert [percentile([(3.0, 1.0), (1.0, 1.0)], percent) for percent in (50, 90)] == [1, 3]
    assert percentile([], 50) is None
    # heavy values count as often as they weigh
    assert percentile([(1.0, 3.0), (2.0, 1.0)], 75) == 1
    assert percentile([(1.0, 3.0), (2.0, 1.0)], 76) == 2
    # ten tenths, added one by one, stay below 1
    assert percentile([(float(value), 0.1) for value in range(10)], 100) == 9


def test_a_pass_by_hand() -> None:
    one = Pass(
        2,
        [
            # waits 1 s, then 1 token after 2 s, then 3 tokens after 3 s
            record(0, 10.0, (11.0, 2), (13.0, 1), (16.0, 3), rounds=(1, 1, 1), drafted=9, user=0),
            record(1, 10.0, (12.0, 1), (14.0, 1), rounds=(2,), drafted=0, user=1),
            failed(2, 14.0, 14.5, user=1),
        ],
        complete=True,
    )
    found = pass_figures(one)
    assert (found["requests"], found["errors"], found["tokens"]) == (2, 1, 8)
    assert found["seconds"] == 6
    assert found["tokens_per_second"] == pytest.approx(8 / 6)
    assert (found["ttft_p50"], found["ttft_p99"]) == (1, 2)
    # tokens: 2 s, three of 1 s each, 2 s; first events are the first token's affair
    assert (found["itl_p50"], found["itl_p90"]) == (1, 2)
    # events: 2 s, 3 s, 2 s
    assert (found["event_gap_p50"], found["event_gap_p99"]) == (2, 3)
    assert found["per_user_tokens_per_second"] == pytest.approx((4 / 5 + 1 / 2) / 2)
    assert found["tau"] == pytest.approx(8 / 5)
    assert found["nodes_per_round"] == pytest.approx(9 / 5)


def test_steady_is_while_all_users_were_busy() -> None:
    one = Pass(
        2,
        [
            record(0, 0.0, (1.0, 10), user=0),
            record(1, 0.5, (2.0, 10), user=1),
            record(2, 1.0, (3.0, 10), user=0),
            # user 0 has run out at 3: what comes now is the tail
            record(3, 2.0, (6.0, 10), user=1),
        ],
        complete=True,
    )
    assert pass_figures(one)["steady_tokens_per_second"] == pytest.approx(30 / 2.5)
    assert pass_figures(one)["tokens_per_second"] == pytest.approx(40 / 6)
    for other in (Pass(2, one.records), Pass(3, one.records, True), Pass(None, one.records, True)):
        assert pass_figures(other)["steady_tokens_per_second"] is None


def test_answers_of_one_event_have_no_gaps() -> None:
    found = pass_figures(Pass(1, [record(0, 0.0, (2.0, 5))], True))
    assert (found["itl_p50"], found["event_gap_p99"], found["per_user_tokens_per_second"]) == (None, None, None)
    assert (found["tau"], found["nodes_per_round"]) == (None, None)
    assert found["ttft_p50"] == 2


def test_a_side_is_the_median_of_its_whole_passes() -> None:
    def one(seconds: float, **flags: Any) -> Pass:
        return Pass(1, [record(0, 0.0, (seconds, 10), **flags)], complete=True)

    cut = Pass(1, [record(0, 0.0, (100.0, 10))])
    found = side_figures([one(1.0), one(2.0), one(10.0, counted=False), cut])
    assert found is not None
    assert found["tokens_per_second"] == 5
    assert (found["tokens"], found["requests"], found["errors"]) == (30, 3, 0)
    assert [row["tokens_per_second"] for row in found["passes"]] == [10, 5, 1]
    assert found["event_tokens"] == "spread"
    only = side_figures([cut, Pass(1)])
    assert only is not None
    assert (only["tokens_per_second"], only["passes"][0]["complete"], only["event_tokens"]) == (0.1, False, "counted")
    assert side_figures([Pass(1), Pass(1, [failed(0, 0.0, 1.0)], True)]) is None


def level_run() -> LevelRun:
    plain = [
        Pass(1, [record(0, 0.0, (4.0, 10)), record(1, 4.0, (8.0, 10))], True),
        Pass(1, [record(0, 0.0, (4.0, 10)), record(1, 4.0, (8.0, 10))], True),
    ]
    speculative = [
        Pass(1, [record(1, 0.0, (2.0, 10), said="other"), record(0, 2.0, (4.0, 10))], True),
        Pass(1, [record(0, 0.0, (1.0, 10)), failed(1, 1.0, 2.0)], True),
    ]
    return LevelRun(Level(2, concurrency=1), {"plain": plain, "speculative": speculative})


def test_a_level_compares_what_has_the_same_number() -> None:
    found = level_figures(level_run())
    assert found is not None
    assert (found["concurrency"], found["requests"], found["compared"]) == (1, 2, 3)
    assert found["parity"] == pytest.approx(2 / 3)
    assert found["speedup"] == pytest.approx((2 + 4) / 2)
    assert found["speculative"]["errors"] == 1


def test_an_open_level_has_no_speedup() -> None:
    run = level_run()
    run.level = Level(2, rate=0.5)
    found = level_figures(run)
    assert found is not None
    assert (found["rate"], found["speedup"]) == (0.5, None)
    assert "concurrency" not in found


def test_one_side_alone() -> None:
    run = level_run()
    del run.passes["plain"]
    found = level_figures(run)
    assert found is not None
    assert (found["plain"], found["speedup"], found["parity"], found["compared"]) == (None, None, None, 0)
    assert len(table([found]).splitlines()) == 2
    assert level_figures(LevelRun(Level(2, concurrency=1), {"plain": [], "speculative": [Pass(1)]})) is None


def test_table_lines_up() -> None:
    found = level_figures(level_run())
    assert found is not None
    head, plain, speculative = table([found]).splitlines()
    assert head.split()[:3] == ["users", "decoding", "tok/s"]
    assert plain.split()[:3] == ["1", "plain", "2.5"]
    assert speculative.split()[1] == "speculative"
    assert speculative.endswith("66.7 %")
    assert len(head) == len(speculative)
    column = head.index("errors") + len("errors") - 1
    assert (plain[column], speculative[column]) == ("0", "1")
