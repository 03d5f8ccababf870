"""Levels, prompts in turn, arrivals."""

from itertools import pairwise
from statistics import fmean, pstdev

import pytest

from redraft.benchmarks.load_plan import (
    arrivals,
    closed_levels,
    jobs,
    open_levels,
    read_concurrency,
    read_rates,
    round_robin,
)
from redraft.benchmarks.measure import Ask
from redraft.benchmarks.prompts import PromptFile
from redraft.server.engine.types import RedraftError


def test_lists_of_levels() -> None:
    assert read_concurrency("1, 4,1024") == (1, 4, 1024)
    assert read_rates("0.5,2") == (0.5, 2.0)


@pytest.mark.parametrize("text", ["", "0", "-1", "1025", "1.5", "four", "1,,4", "1,", "٣", "1" * 5000])
def test_concurrency_that_is_none(text: str) -> None:
    with pytest.raises(RedraftError, match=r"--concurrency .*must be numbers"):
        read_concurrency(text)


@pytest.mark.parametrize("text", ["", "0", "-2", "inf", "nan", "many", "1e9", "2,"])
def test_rates_that_are_none(text: str) -> None:
    with pytest.raises(RedraftError, match=r"--rate .*must be"):
        read_rates(text)


def test_a_level_named_twice() -> None:
    with pytest.raises(RedraftError, match=r"--concurrency names a level twice"):
        read_concurrency("1,4,1")
    with pytest.raises(RedraftError, match="--rate names a level twice"):
        read_rates("1,1.0")


def test_requests_of_a_level() -> None:
    assert [level.requests for level in closed_levels((1, 4), 8, None)] == [8, 12]
    assert [level.requests for level in closed_levels((1, 4), 8, 5)] == [5, 5]
    assert [level.requests for level in open_levels((0.1, 2.0), 8, None)] == [8, 40]
    assert [level.name for level in (*closed_levels((4,), 1, 1), *open_levels((0.5,), 1, 1))] == [
        "concurrency 4",
        "0.5 requests/s",
    ]


def test_prompts_come_from_all_files_in_turn() -> None:
    files = [PromptFile("a", (("a1", "more"), ("a2",), ("a3",))), PromptFile("b", (("b1",),))]
    assert round_robin(files) == ("a1", "b1", "a2", "a3")
    made = jobs(("x", "y"), 5, Ask(9, 0.5, 100))
    assert [job.prompt for job in made] == ["x", "y", "x", "y", "x"]
    assert [job.number for job in made] == [0, 1, 2, 3, 4]
    assert [(job.ask.seed, job.ask.max_tokens, job.ask.temperature) for job in made[:2]] == [
        (100, 9, 0.5),
        (101, 9, 0.5),
    ]


def test_arrivals_are_a_poisson_process_and_the_same_every_time() -> None:
    times = arrivals(4.0, 5000, seed=1)
    gaps = [after - before for before, after in pairwise(times)]
    assert times[0] == 0
    assert fmean(gaps) == pytest.approx(1 / 4, rel=0.05)
    assert pstdev(gaps) == pytest.approx(1 / 4, rel=0.05)
    assert arrivals(4.0, 5000, seed=1) == times
    assert arrivals(4.0, 5000, seed=2) != times
