"""Figures from replies, by hand, and the table."""

import pytest

from redraft.benchmarks.measure import FileRun, Pair, Reply
from redraft.benchmarks.prompts import PromptFile
from redraft.benchmarks.report import figures, table, tau


def reply(seconds: float, tokens: int, rounds: tuple[int, ...] | None = None, text: str = "") -> Reply:
    return Reply(seconds, tokens, tuple(f"{text}{i}" for i in range(tokens)), text, rounds)


def test_figures_of_two_passes() -> None:
    prompts = PromptFile("some.jsonl", (("a",), ("b",)))
    slow = [
        Pair((reply(4, 10, (10,)),), (reply(2, 10, (2, 4)),)),
        Pair((reply(6, 10, (10,)),), (reply(3, 10, (0, 0, 0, 0, 2, 0)),)),
    ]
    fast = [
        Pair((reply(1, 10, (10,)),), (reply(1, 10, (2, 4)),)),
        Pair((reply(1, 10, (10,)),), (reply(1, 10, (0, 0, 0, 0, 2)),)),
    ]
    found = figures(FileRun(prompts, [slow, fast]))
    assert found is not None
    assert found["plain_tokens_per_second"] == pytest.approx((2 + 10) / 2)
    assert found["tokens_per_second"] == pytest.approx((4 + 10) / 2)
    # ratios are taken within a pass
    assert found["speedup"] == pytest.approx((2 + 1) / 2)
    assert found["histogram"] == [4, 8, 0, 0, 4]
    assert found["tau"] == pytest.approx(40 / 16)
    assert found["tau_per_request"] == pytest.approx((10 / 6 + 5) / 2)
    assert (found["parity"], found["requests"], found["tokens"], found["passes"]) == (1.0, 4, 40, 2)
    assert found["p50_seconds"] == 1.5


def test_parity_counts_requests_that_differ() -> None:
    run = FileRun(PromptFile("f", (("a",), ("b",))))
    run.passes = [[Pair((reply(1, 3),), (reply(1, 3),)), Pair((reply(1, 3),), (reply(1, 3, text="other"),))]]
    found = figures(run)
    assert found is not None
    assert found["parity"] == 0.5
    assert (found["tau"], found["histogram"], found["tau_per_request"]) == (None, None, None)


def test_a_pass_cut_short_counts_only_when_there_is_no_whole_one() -> None:
    whole = [Pair((reply(1, 10),), (reply(1, 10),)), Pair((reply(1, 10),), (reply(1, 10),))]
    cut = [Pair((reply(1, 10),), (reply(0.1, 10),))]
    prompts = PromptFile("f", (("a",), ("b",)))
    only, with_whole = figures(FileRun(prompts, [cut])), figures(FileRun(prompts, [whole, cut, []]))
    assert only is not None
    assert with_whole is not None
    assert (only["speedup"], with_whole["speedup"], with_whole["passes"]) == (pytest.approx(10), pytest.approx(1), 1)
    assert figures(FileRun(prompts, [[]])) is None


def test_without_plain_decoding_nothing_is_compared() -> None:
    found = figures(FileRun(PromptFile("f", (("a",),)), [[Pair((), (reply(2, 10, (0, 5)),))]]))
    assert found is not None
    assert (found["plain_tokens_per_second"], found["speedup"], found["parity"]) == (None, None, None)
    assert found["tokens_per_second"] == 5
    lines = table([found]).splitlines()
    assert lines[1].split()[:8] == ["f", "1", "10", "-", "5.00", "-", "2.00", "2.00"]


def test_table_lines_up() -> None:
    one = figures(
        FileRun(PromptFile("gsm8k.jsonl", (("a",),)), [[Pair((reply(1, 8, (8,)),), (reply(0.5, 8, (0, 4)),))]])
    )
    two = figures(FileRun(PromptFile("x", (("a",),)), [[Pair((reply(100, 8, (8,)),), (reply(0.5, 8, (6, 2)),))]]))
    assert one is not None
    assert two is not None
    head, first, second, *histograms = table([one, two]).splitlines()
    assert head.startswith("file ")
    assert len(head) == len(first) == len(second)
    assert head.index("parity") + len("parity") == first.index("100.0 %") + len("100.0 %")
    assert histograms[1] == "x: rounds by tokens committed  1: 75.0 %  2: 25.0 %"


def test_tau_of_nothing() -> None:
    assert tau(None) is None
    assert tau((0, 0)) is None
    assert tau((1, 1)) == 1.5
