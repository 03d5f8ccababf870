"""What a stream's events stand for."""

from typing import Any

import pytest

from redraft.benchmarks.load_clients import Answer
from redraft.benchmarks.load_stream import Transcript, answer_of
from redraft.server.engine.types import RedraftError


def text(words: str, finish: str | None = None, name: str = "content", **rest: Any) -> dict[str, Any]:
    return {"choices": [{"delta": {name: words}, "finish_reason": finish}], **rest}


def read(*events: dict[str, Any]) -> Answer:
    """The events came a second apart, the first at 0."""
    transcript = Transcript()
    for number, event in enumerate(events):
        transcript.take(event, float(number))
    return answer_of(transcript)


def tokens(answer: Answer) -> list[tuple[float, float]]:
    return [(event.at, event.tokens) for event in answer.events]


def usage(total: int) -> dict[str, Any]:
    return {"completion_tokens": total}


def test_a_total_is_spread_over_the_events_with_text() -> None:
    answer = read(text(""), text("one "), text("two", usage=None), text("", "stop"), {"choices": [], "usage": usage(5)})
    assert tokens(answer) == [(1, 2.5), (2, 2.5)]
    assert (answer.tokens, answer.units, answer.counted) == (5, ("one two",), False)
    assert (answer.rounds, answer.drafted) == (None, None)


def test_metrics_tell_what_came_after_the_first_event() -> None:
    metrics = {
        "speculative_decoding": {"acceptance_histogram": [1, 2], "num_draft_tokens": 7},
        "mean_itl_ms": 20.0,
        "generation_time_ms": 80.0,
    }
    last = {"choices": [], "usage": usage(5), "metrics": metrics}
    answer = read(text("a"), text("b"), text("c"), last)
    assert tokens(answer) == [(0, 1), (1, 2), (2, 2)]
    assert (answer.counted, answer.rounds, answer.drafted) == (False, (1, 2), 7)


def test_running_totals_are_told_event_by_event() -> None:
    answer = read(
        text("", usage=usage(0)),
        text("a", usage=usage(1)),
        # two tokens that make no text yet
        text("", usage=usage(3)),
        # text that was held back
        text("b", usage=usage(3)),
        text("c", usage=usage(4)),
        text("", "stop", usage=usage(4)),
        # the end of the turn, counted only now
        {"choices": [], "usage": usage(5)},
    )
    assert tokens(answer) == [(1, 1), (2, 2), (4, 2)]
    assert (answer.counted, answer.tokens) == (True, 5)


def test_a_total_with_the_last_chunk_is_no_running_total() -> None:
    answer = read(text("a"), text("b"), text("", "stop", usage=usage(4)))
    assert tokens(answer) == [(0, 2), (1, 2)]
    assert not answer.counted


def test_thoughts_are_text() -> None:
    answer = read(text("hm ", name="reasoning_content"), text("yes"), {"choices": [], "usage": usage(2)})
    assert (answer.units, len(answer.events)) == (("hm yes",), 2)


def test_an_answer_that_ends_at_once() -> None:
    answer = read(text(""), text("", "stop"), {"choices": [], "usage": usage(1)})
    assert tokens(answer) == [(1, 1)]


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([text("a")], "sends no usage"),
        ([], "sends no usage"),
        ([{"choices": [], "usage": usage(3)}], "without a token"),
        ([text("a", "stop"), {"choices": [], "usage": usage(0)}], "without a token"),
    ],
)
def test_streams_that_cannot_be_counted(events: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(RedraftError, match=message):
        read(*events)
