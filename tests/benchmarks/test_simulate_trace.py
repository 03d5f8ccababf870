"""Traces: which nodes were right, files that come back as they were written, and files that are none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from redraft.benchmarks.simulate_trace import NOTHING, Text, Trace, Tree, judged, proposal, read_trace, write_trace
from redraft.server.engine.acceptance import outcomes
from redraft.server.engine.types import RedraftError

TREE = Tree(parent=(0, 1, 0, 2), score=(0.9, 0.5, 0.4, 0.25), right=(True, True, False, False))


def test_nodes_are_judged_by_the_text_that_followed() -> None:
    #            root  7   8   9   8     6
    parent, token = (0, 0, 1, 1, 0, 2), (5, 7, 8, 9, 8, 6)
    tree = judged(parent, token, (1.0, 0.9, 0.5, 0.3, 0.2, 0.1), following=(7, 8, 1))
    assert tree == Tree((0, 1, 1, 0, 2), (0.9, 0.5, 0.3, 0.2, 0.1), (True, True, False, False, False))


def test_below_a_wrong_node_and_behind_the_end_nothing_is_right() -> None:
    assert judged((0, 0, 1), (5, 7, 8), (1.0, 0.9, 0.5), following=(1, 8)).right == (False, False)
    assert judged((0, 0, 1), (5, 7, 8), (1.0, 0.9, 0.5), following=(7,)).right == (True, False)
    assert judged((0, 0, 1), (5, 7, 8), (1.0, 0.9, 0.5), following=()).right == (False, False)


def test_absent_nodes_are_left_out_with_what_lies_below() -> None:
    tree = judged((0, 0, 1, 0), (5, 7, 8, 6), (1.0, -math.inf, 0.5, 0.4), following=(6, 8))
    assert tree == Tree((0,), (0.4,), (True,))
    assert judged((0, 0), (5, 7), (1.0, math.nan), following=(7,)) == NOTHING


def test_of_equal_siblings_the_first_is_right() -> None:
    assert judged((0, 0, 0), (5, 7, 7), (1.0, 0.9, 0.9), following=(7,)).right == (True, False)


def test_what_the_engine_learns_from_a_tree() -> None:
    seen = outcomes(proposal(TREE, committed=3, verified=2))
    assert seen == [(0.9, True), (0.5, True), (0.4, False), (0.25, False)]
    # node 4 hangs on node 2, which had no row
    assert outcomes(proposal(TREE, committed=2, verified=1))[3] == (0.25, None)


@pytest.mark.parametrize(
    ("parent", "score", "right"),
    [
        ((0, 0), (0.5,), (False, False)),
        ((1,), (0.5,), (False,)),
        ((-1,), (0.5,), (False,)),
        ((0,), (math.nan,), (False,)),
        ((0, 0), (0.5, 0.4), (True, True)),
        ((0, 1), (0.5, 0.4), (False, True)),
    ],
)
def test_what_is_no_tree_is_refused(parent: tuple[int, ...], score: tuple[float, ...], right: tuple[bool, ...]) -> None:
    with pytest.raises(ValueError, match=r"must|come"):
        Tree(parent, score, right)


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    third = judged((0, 0), (5, 7), (1.0, 0.3333333432674408), (7,))  # 1/3 in 32 bits
    trace = Trace(4, (Text(12, (TREE, NOTHING, third)), Text(1, (NOTHING,))), {"target": "tiny", "draft": "ngram-1"})
    write_trace(tmp_path / "trace.jsonl", trace)
    assert read_trace(tmp_path / "trace.jsonl") == trace


@pytest.mark.parametrize(
    ("lines", "place"),
    [
        ([], ":1"),
        (["not json"], ":1"),
        (["[]"], ":1"),
        (['{"width": 4}'], ":1"),
        (['{"trace": 2, "width": 4}'], ":1"),
        (['{"trace": 1, "width": 4}'], ":1"),
        (['{"trace": 1, "width": 4}', '{"prompt_tokens": 3, "trees": [[]]}', "{}"], ":3"),
        (['{"trace": 1, "width": 4}', '{"prompt_tokens": 0, "trees": [[]]}'], ":2"),
        (['{"trace": 1, "width": 4}', '{"prompt_tokens": 3, "trees": []}'], ":2"),
        (['{"trace": 1, "width": 4}', '{"prompt_tokens": 3, "trees": [[[0, 0.5]]]}'], ":2"),
        (['{"trace": 1, "width": 4}', '{"prompt_tokens": 3, "trees": [[[1, 0.5, 0]]]}'], ":2"),
        (['{"trace": 1, "width": 1}', '{"prompt_tokens": 3, "trees": [[[0, 0.5, 0], [0, 0.4, 0]]]}'], ":2"),
        (['{"trace": 1, "width": 4}', '{"prompt_tokens": 3, "trees": [[[0, NaN, 0]]]}'], ":2"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_line(tmp_path: Path, lines: list[str], place: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(RedraftError, match=f"{path}{place}: not a trace"):
        read_trace(path)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(RedraftError, match="cannot read"):
        read_trace(tmp_path)
    with pytest.raises(RedraftError, match="cannot write"):
        write_trace(tmp_path, Trace(0, (Text(1, (NOTHING,)),)))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(RedraftError, match="not UTF-8"):
        read_trace(tmp_path / "binary")


def test_lines_are_json(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.jsonl", Trace(4, (Text(12, (TREE,)),)))
    header, text = map(json.loads, (tmp_path / "trace.jsonl").read_text().splitlines())
    assert header == {"trace": 1, "width": 4}
    assert text == {"prompt_tokens": 12, "trees": [[[0, 0.9, 1], [1, 0.5, 1], [0, 0.4, 0], [2, 0.25, 0]]]}
