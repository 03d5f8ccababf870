"""Simulated requests: their lengths, and what is proposed for them."""

from __future__ import annotations

import random
from statistics import fmean, median

import pytest

from redraft.benchmarks.simulate_lengths import MOST, Lengths, read_lengths
from redraft.benchmarks.simulate_script import Chances, Drawn, Plain, Recorded, jobs
from redraft.benchmarks.simulate_trace import NOTHING, Text, Trace, Tree
from redraft.server.engine.types import RedraftError

NO_TOKENS = ("", "0", "-1", "1.5", "٣", "9" * 5000, "1000001", "normal:1:1", "5:0.5")
NO_SPREADS = ("", "5", "0:1", "5:-1", "5:nan", "5:inf", "5:6", "5:1:2")
ONE = Tree((0,), (0.5,), (True,))
TRACE = Trace(1, (Text(10, (ONE, NOTHING, NOTHING)), Text(20, (NOTHING, ONE))))


def test_lengths_are_read() -> None:
    assert read_lengths("--prompt-tokens", "128") == Lengths(128)
    assert read_lengths("--prompt-tokens", "lognormal:256:0.6") == Lengths(256, 0.6)


@pytest.mark.parametrize("text", [*NO_TOKENS, *(f"lognormal:{rest}" for rest in NO_SPREADS)])
def test_other_lengths_are_refused(text: str) -> None:
    with pytest.raises(RedraftError, match="--output-tokens"):
        read_lengths("--output-tokens", text)


def test_lengths_are_drawn_around_their_median() -> None:
    chance = random.Random(0)
    drawn = [Lengths(200, 0.5).draw(chance) for _ in range(4000)]
    assert median(drawn) == pytest.approx(200, rel=0.05)
    assert fmean(drawn) == pytest.approx(200 * 2.718281828 ** (0.5**2 / 2), rel=0.05)
    assert {Lengths(7).draw(chance) for _ in range(10)} == {7}
    wide = [Lengths(MOST, 5.0).draw(chance) for _ in range(100)]
    assert min(wide) >= 1
    assert max(wide) == MOST


def test_chances_hit_as_often_as_they_say() -> None:
    drawn = Drawn(Chances((0.8, 0.5, 0.1, 0.0)), "seed")
    trees = [drawn.tree(place) for place in range(5000)]
    assert trees == [drawn.tree(place) for place in range(5000)]
    for rank, rate in enumerate((0.8, 0.5, 0.1)):
        assert fmean(tree.right[rank] for tree in trees) == pytest.approx(rate, abs=0.02)
    assert {tree.parent for tree in trees} == {(0, 1, 2)}
    assert Chances((0.8, 0.5, 0.1, 0.0)).width == 4


def test_recorded_texts_go_on_from_their_beginning() -> None:
    text = Recorded(TRACE.texts[0], start=1)
    assert [text.tree(place) for place in range(4)] == [NOTHING, NOTHING, ONE, NOTHING]
    assert Plain().tree(3) == NOTHING


def test_jobs_take_the_texts_in_order() -> None:
    made = jobs(3, TRACE, None, None, seed=0)
    assert [(job.number, job.prompt_tokens, job.output_tokens) for job in made] == [(0, 10, 3), (1, 20, 2), (2, 10, 3)]
    assert made[0].script == made[2].script == Recorded(TRACE.texts[0])


def test_jobs_are_the_same_for_the_same_seed_and_however_many_there_are() -> None:
    for source in (TRACE, Chances((0.5,))):
        arguments = source, Lengths(50, 0.7), Lengths(60, 0.7)
        few, many, other = jobs(5, *arguments, 1), jobs(50, *arguments, 1), jobs(50, *arguments, 2)
        lengths = [(job.prompt_tokens, job.output_tokens) for job in many]
        assert lengths[:5] == [(job.prompt_tokens, job.output_tokens) for job in few]
        assert lengths != [(job.prompt_tokens, job.output_tokens) for job in other]
        assert [job.script.tree(7) for job in few] == [job.script.tree(7) for job in many[:5]]


def test_an_output_of_another_length_begins_anywhere_in_its_text() -> None:
    starts = {job.script.start for job in jobs(60, TRACE, None, Lengths(5), 0) if isinstance(job.script, Recorded)}
    assert starts == {0, 1, 2}


def test_chances_say_nothing_of_lengths() -> None:
    with pytest.raises(ValueError, match="lengths"):
        jobs(1, Chances((0.5,)), None, Lengths(1), 0)
